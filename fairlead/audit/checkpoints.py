"""The state of every task in a run's checkpoints, and the incarnations of its trainer, read without torch.

Only a checkpoint decides what was trained; the claims record which incarnations began, and at which update.
Corrupt files are reported; their content is never guessed. Does not read the journals.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.audit.journal import Damage
from fairlead.errors import InvalidInput
from fairlead.transports.weights.base import Ancestor, is_valid
from fairlead.types import WeightVersion

_CLAIM = re.compile(r"incarnation-(\d+)\.json")
_MANIFEST, _STATE = "manifest.json", "state.json"


@dataclass(frozen=True, slots=True)
class Claims:
    """The incarnations of the trainer."""

    claimed: tuple[int, ...]
    """Every number that was claimed."""
    lineage: tuple[Ancestor, ...]
    """The incarnations that began to train, each with the update that it resumed from."""


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """The state of every task in a checkpoint."""

    version: WeightVersion | None
    """The checkpoint; None for the state before the first one."""
    cursor: int
    """Tasks below it were sent."""
    watermark: int
    """Tasks below it are settled."""
    above: frozenset[int]
    """Settled tasks above the watermark."""
    dead: Mapping[int, str]
    """Dead-lettered tasks and their reasons."""
    no_signal: frozenset[int] = frozenset()
    """Tasks whose answers had no signal; the other settled tasks were trained on."""
    lineage: tuple[Ancestor, ...] = ()
    """The incarnations that led to it, as recorded in the checkpoint."""

    @property
    def update(self) -> int:
        """Number of updates done."""
        return self.version.update if self.version else 0

    @property
    def settled_count(self) -> int:
        """Number of tasks that were trained on, dead-lettered, or had no signal."""
        return self.watermark + len(self.above)

    def is_settled(self, task: int) -> bool:
        """Return whether a task was trained on, dead-lettered, or had no signal."""
        return task < self.watermark or task in self.above

    def event(self, task: int) -> str:
        """Return the event in the journal by which a settled task was settled."""
        if task in self.dead:
            return "dead_letter"
        return "no_signal" if task in self.no_signal else "trained"

    def settled(self) -> set[int]:
        """Return every settled task."""
        return {*range(self.watermark), *self.above}

    def open_tasks(self) -> list[int]:
        """Return the tasks that were sent and are not settled, in order."""
        return [task for task in range(self.watermark, self.cursor) if task not in self.above]


NO_CHECKPOINT = CheckpointState(None, 0, 0, frozenset(), {})
"""The state before the first checkpoint."""


def read_claims(folder: Path, damage: list[Damage]) -> Claims:
    """Read the incarnations of a run, in order. A corrupt record of a resume is added to `damage`."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    claimed = sorted(int(match[1]) for name in names if (match := _CLAIM.fullmatch(name)))
    lineage = []
    for incarnation in claimed:
        path = folder / f"incarnation-{incarnation}.resumed-from.json"
        try:
            resumed_from = json.loads(path.read_text(encoding="utf-8"))["resumed_from"]
            if resumed_from is not None:  # else a newer incarnation replaced it before it began
                lineage.append(Ancestor(incarnation, int(resumed_from)))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            damage.append(Damage(f"{folder.name}/{path.name}", 0, f"cannot be read: {error}"))
    return Claims(tuple(claimed), tuple(lineage))


def read_checkpoints(folder: Path, damage: list[Damage], *, tensors: bool = True) -> list[CheckpointState]:
    """Read every complete checkpoint, oldest first, valid or not; corrupt ones are added to `damage`.

    A checkpoint that is deleted while it is read is skipped. With `tensors=False`, the checksums of the
    tensors are not verified.
    """
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            version = WeightVersion.parse(path.name)
        except InvalidInput:
            continue
        try:
            found.append(_read_checkpoint(path, version, tensors=tensors))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if path.is_dir():
                reason = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
                damage.append(Damage(f"{folder.name}/{path.name}", 0, f"is damaged: {reason}"))
    return sorted(found, key=lambda state: state.version or WeightVersion(0, 0))


def newest(checkpoints: Sequence[CheckpointState], lineage: Sequence[Ancestor]) -> CheckpointState:
    """Return the valid checkpoint with the most updates, which a trainer would resume from."""
    valid = [state for state in checkpoints if state.version and is_valid(state.version, lineage)]
    return max(
        valid,
        key=lambda state: (state.update, state.version and state.version.incarnation),
        default=NO_CHECKPOINT,
    )


def _read_checkpoint(folder: Path, version: WeightVersion, *, tensors: bool) -> CheckpointState:
    digests = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
    if _STATE not in digests:
        raise ValueError(f"its manifest does not list {_STATE}")
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if (tensors or name == _STATE) and _sha256(folder / name) != digest:
            raise ValueError(f"{name} does not match its checksum in the manifest")
    state: Any = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    if int(state["update"]) != version.update:
        raise ValueError(f"{_STATE} belongs to update {state['update']}")
    ledger = state["ledger"]
    return CheckpointState(
        version=version,
        cursor=int(state["cursor"]),
        watermark=int(ledger["watermark"]),
        above=frozenset(map(int, ledger["above"])),
        dead={int(task): str(reason) for task, reason in ledger["dead"].items()},
        no_signal=frozenset(map(int, ledger.get("no_signal", ()))),
        lineage=tuple(Ancestor(int(one), int(from_)) for one, from_ in state.get("lineage", ())),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
