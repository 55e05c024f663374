"""A consistent snapshot of a run's files and queue, which may be taken while the run is active.

A trainer records that it sends a task, later writes the outcome to its journal, then to a checkpoint, then
deletes it from the queue. The snapshot reads in the opposite order (deletions, checkpoints, queue, journal,
sendings), so it never shows a later step without the earlier ones. If an incarnation begins meanwhile,
or all checkpoints are replaced while they are read, everything is read again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fairlead.audit.checkpoints import CheckpointState, Claims, newest, read_checkpoints, read_claims
from fairlead.audit.journal import Damage, EventLine, OutcomeLine, read_events, read_outcomes
from fairlead.config import RunFolder
from fairlead.errors import CorruptWeights, FairleadError, InvalidInput
from fairlead.transports.rollouts.base import QueueSnapshot
from fairlead.transports.weights import manifest as manifests
from fairlead.transports.weights.base import Manifest
from fairlead.types import WeightVersion

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """The settings of an incarnation that the audit checks."""

    batch_size: int
    """Answers per update."""
    max_staleness: int
    """Updates by which the weights that generated a token may be older than those that train on it."""
    num_samples: int = 1
    """Answers per task."""
    extra_tasks: int = 0
    """Most outcomes without signal per update, which are not part of its batch."""

    @property
    def tasks_per_update(self) -> int:
        """Outcomes per update."""
        return self.batch_size // self.num_samples


@dataclass(frozen=True, kw_only=True)
class RunSnapshot:
    """The state of a run on disk and in Redis."""

    claims: Claims
    """Incarnations."""
    events: list[EventLine]
    """The trainers' actions on the queue; empty for runs of a Fairlead version that did not record them."""
    checkpoints: list[CheckpointState]
    """Complete checkpoints, oldest first."""
    newest: CheckpointState
    """The checkpoint that a trainer would resume from."""
    outcomes: list[OutcomeLine]
    """The trainers' decisions on every outcome."""
    queue: QueueSnapshot | None = None
    """Content of Redis; None if it was not read."""
    queue_error: str = ""
    """Why Redis was not read."""
    weights: list[Manifest] = field(default_factory=list)
    """Weight versions that still exist."""
    result: Mapping[str, object] | None = None
    """Final figures, if PPO has ended."""
    settings: TrainingSettings | None = None
    """Settings of the run's configuration, for incarnations that did not record theirs."""
    damage: list[Damage] = field(default_factory=list)
    """What cannot be read."""


def read_run(
    folder: RunFolder,
    *,
    weights: Path | None = None,
    settings: TrainingSettings | None = None,
    read_queue: Callable[[], QueueSnapshot] | None = None,
    tensors: bool = True,
) -> RunSnapshot:
    """Read a run.

    Args:
        folder: folder of the run.
        weights: folder of its weight store; None for the one in the run's folder.
        settings: settings of its configuration.
        read_queue: returns the content of its queue; None to leave the queue out.
        tensors: also verify the checksums of the tensors in checkpoints.
    """
    for _ in range(_ATTEMPTS):
        found = _read_once(folder, weights or folder.weights, settings, read_queue, tensors=tensors)
        replaced = not found.checkpoints and read_checkpoints(folder.checkpoints, [], tensors=False)
        if not replaced and read_claims(folder.checkpoints, []) == found.claims:
            return found
    found.damage.append(
        Damage(
            folder.checkpoints.name,
            0,
            "incarnations began during the audit; run it again",
        )
    )
    return found


def _read_once(
    folder: RunFolder,
    weights: Path,
    settings: TrainingSettings | None,
    read_queue: Callable[[], QueueSnapshot] | None,
    *,
    tensors: bool,
) -> RunSnapshot:
    damage: list[Damage] = []
    claims = read_claims(folder.checkpoints, damage)
    result = _result(folder.result("ppo"), damage)
    events = read_events(folder.events, damage)
    checkpoints = read_checkpoints(folder.checkpoints, damage, tensors=tensors)
    queue, queue_error = _queue(read_queue)
    outcomes = read_outcomes(folder.ledger, damage)
    # The lines that were appended meanwhile: the sendings of the outcomes above, but no later deletions.
    appended = read_events(folder.events, [])[len(events) :]
    return RunSnapshot(
        claims=claims,
        events=events + [event for event in appended if event.event == "sent"],
        checkpoints=checkpoints,
        newest=newest(checkpoints, claims.lineage),
        outcomes=outcomes,
        queue=queue,
        queue_error=queue_error,
        weights=_weights(weights, damage),
        result=result,
        settings=settings,
        damage=damage,
    )


def _queue(read_queue: Callable[[], QueueSnapshot] | None) -> tuple[QueueSnapshot | None, str]:
    if read_queue is None:
        return None, "not requested"
    try:
        return read_queue(), ""
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
            if path.is_dir():  # else deleted while it was read
                damage.append(Damage(f"{root.name}/{path.name}", 0, str(error)))
    return found
