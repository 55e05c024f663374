"""Everything that an audit looks at, read in an order in which a run at work contradicts nothing.

A trainer writes an outcome into its journal, then into a checkpoint, then takes it out of the queue. Read the
other way round (events, checkpoints, queue, journal), whatever is seen of a step is behind what is seen of
the step before it. An incarnation that began meanwhile makes all of it be read again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fairlead.audit.journal import Damage, EventLine, OutcomeLine, read_events, read_outcomes
from fairlead.audit.truth import Claims, Truth, newest, read_checkpoints, read_claims
from fairlead.config import RunFolder
from fairlead.errors import CorruptWeights, FairleadError, InvalidInput
from fairlead.transports.rollouts.base import QueueSnapshot
from fairlead.transports.weights import manifest as manifests
from fairlead.transports.weights.base import Manifest
from fairlead.types import WeightVersion

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Terms:
    """What an incarnation had agreed to."""

    batch_size: int
    """Outcomes of an update."""
    max_staleness: int
    """Updates that weights may lag behind those that train on their tokens."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run as it was found."""

    claims: Claims
    """Incarnations."""
    events: list[EventLine]
    """What the trainers did to the queue; empty for runs of a fairlead that did not write it down."""
    checkpoints: list[Truth]
    """Whole checkpoints, oldest first."""
    truth: Truth
    """The one that a trainer would resume."""
    outcomes: list[OutcomeLine]
    """What the trainers made of every outcome."""
    queue: QueueSnapshot | None = None
    """What Redis holds; None if it was not looked at."""
    queue_error: str = ""
    """Why it was not."""
    weights: list[Manifest] = field(default_factory=list)
    """Weight versions that are still there."""
    result: Mapping[str, object] | None = None
    """Final figures, if PPO has ended."""
    terms: Terms | None = None
    """Those of the run's configuration, for incarnations that did not write theirs down."""
    damage: list[Damage] = field(default_factory=list)
    """What cannot be read."""


def take(
    folder: RunFolder,
    *,
    weights: Path | None = None,
    terms: Terms | None = None,
    look: Callable[[], QueueSnapshot] | None = None,
    tensors: bool = True,
) -> Snapshot:
    """Reads a run.

    Args:
        folder: the run.
        weights: its weight store, if that lies elsewhere.
        terms: what its configuration says.
        look: looks at its queue; None leaves it out.
        tensors: also hold the tensors of checkpoints against their checksums.
    """
    for _ in range(_TRIES):
        found = _once(folder, weights or folder.weights, terms, look, tensors=tensors)
        if read_claims(folder.checkpoints, []) == found.claims:
            return found
    found.damage.append(
        Damage(folder.checkpoints.name, 0, "incarnations began while all was read; look again")
    )
    return found


def _once(
    folder: RunFolder,
    weights: Path,
    terms: Terms | None,
    look: Callable[[], QueueSnapshot] | None,
    *,
    tensors: bool,
) -> Snapshot:
    damage: list[Damage] = []
    claims = read_claims(folder.checkpoints, damage)
    result = _result(folder.result("ppo"), damage)
    events = read_events(folder.events, damage)
    checkpoints = read_checkpoints(folder.checkpoints, damage, tensors=tensors)
    queue, queue_error = _queue(look)
    outcomes = read_outcomes(folder.ledger, damage)
    return Snapshot(
        claims=claims,
        events=events,
        checkpoints=checkpoints,
        truth=newest(checkpoints, claims.lineage),
        outcomes=outcomes,
        queue=queue,
        queue_error=queue_error,
        weights=_weights(weights, damage),
        result=result,
        terms=terms,
        damage=damage,
    )


def _queue(look: Callable[[], QueueSnapshot] | None) -> tuple[QueueSnapshot | None, str]:
    if look is None:
        return None, "not asked for"
    try:
        return look(), ""
    except FairleadError as error:
        return None, str(error)


def _result(path: Path, damage: list[Damage]) -> Mapping[str, object] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        damage.append(Damage(path.name, 0, f"cannot be read: {error}"))
        return None
    return found if isinstance(found, dict) else None


def _weights(root: Path, damage: list[Damage]) -> list[Manifest]:
    found = []
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        try:
            found.append(manifests.read(path, WeightVersion.parse(path.name)))
        except InvalidInput:
            continue
        except CorruptWeights as error:
            if path.is_dir():  # else pruned while it was read
                damage.append(Damage(f"{root.name}/{path.name}", 0, str(error)))
    return found
