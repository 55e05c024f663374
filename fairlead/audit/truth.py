"""What a run's checkpoints and claims of incarnations say, read without torch.

A checkpoint is the only truth about what was trained; the claims say which incarnations took up where. Files
that do not hold are named, never guessed. Knows no journal.
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
    """Incarnations of the trainer."""

    claimed: tuple[int, ...]
    """Every number that was ever claimed."""
    lineage: tuple[Ancestor, ...]
    """Those that got as far as to take up, and from which update."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What a checkpoint says became of every task."""

    version: WeightVersion | None
    """The checkpoint; None for the beginning, before there was one."""
    cursor: int
    """Tasks below it were sent."""
    watermark: int
    """Tasks below it are settled."""
    above: frozenset[int]
    """Settled tasks above the watermark."""
    dead: Mapping[int, str]
    """Dead tasks and their reasons; the other settled ones were trained on."""
    lineage: tuple[Ancestor, ...] = ()
    """The incarnations behind it, as it says itself."""

    @property
    def update(self) -> int:
        """Updates done."""
        return self.version.update if self.version else 0

    @property
    def settled_count(self) -> int:
        """Tasks that were trained on or are dead."""
        return self.watermark + len(self.above)

    def is_settled(self, task: int) -> bool:
        """Whether the task was trained on or is dead."""
        return task < self.watermark or task in self.above

    def settled(self) -> set[int]:
        """Every settled task."""
        return {*range(self.watermark), *self.above}

    def open_tasks(self) -> list[int]:
        """Tasks that were sent and are not settled, in order."""
        return [task for task in range(self.watermark, self.cursor) if task not in self.above]


BEGINNING = Truth(None, 0, 0, frozenset(), {})
"""Before the first checkpoint."""


def read_claims(folder: Path, damage: list[Damage]) -> Claims:
    """The claims of a run, in order; a record of a resume that cannot be read is added to `damage`."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    claimed = sorted(int(match[1]) for name in names if (match := _CLAIM.fullmatch(name)))
    lineage = []
    for incarnation in claimed:
        path = folder / f"incarnation-{incarnation}.resumed-from.json"
        try:
            resumed_from = json.loads(path.read_text(encoding="utf-8"))["resumed_from"]
            if resumed_from is not None:  # else a newer one has shut it out
                lineage.append(Ancestor(incarnation, int(resumed_from)))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            damage.append(Damage(f"{folder.name}/{path.name}", 0, f"cannot be read: {error}"))
    return Claims(tuple(claimed), tuple(lineage))


def read_checkpoints(folder: Path, damage: list[Damage], *, tensors: bool = True) -> list[Truth]:
    """Every whole checkpoint, oldest first, valid or not; the others are added to `damage`.

    One that is deleted while it is read is left out without a word. `tensors` False reads no tensors and
    takes their checksums for granted.
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
                told = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
                damage.append(Damage(f"{folder.name}/{path.name}", 0, f"is damaged: {told}"))
    return sorted(found, key=lambda truth: truth.version or WeightVersion(0, 0))


def newest(checkpoints: Sequence[Truth], lineage: Sequence[Ancestor]) -> Truth:
    """The valid checkpoint with the most updates: what a trainer would resume."""
    valid = [truth for truth in checkpoints if truth.version and is_valid(truth.version, lineage)]
    return max(
        valid,
        key=lambda truth: (truth.update, truth.version and truth.version.incarnation),
        default=BEGINNING,
    )


def _read_checkpoint(folder: Path, version: WeightVersion, *, tensors: bool) -> Truth:
    digests = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
    if _STATE not in digests:
        raise ValueError(f"its manifest does not name {_STATE}")
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if (tensors or name == _STATE) and _sha256(folder / name) != digest:
            raise ValueError(f"{name} does not have the checksum of its manifest")
    state: Any = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    if int(state["update"]) != version.update:
        raise ValueError(f"{_STATE} is of update {state['update']}")
    ledger = state["ledger"]
    return Truth(
        version=version,
        cursor=int(state["cursor"]),
        watermark=int(ledger["watermark"]),
        above=frozenset(map(int, ledger["above"])),
        dead={int(task): str(reason) for task, reason in ledger["dead"].items()},
        lineage=tuple(Ancestor(int(one), int(from_)) for one, from_ in state.get("lineage", ())),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
