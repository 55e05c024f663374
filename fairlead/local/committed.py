"""How far the trainer of a run has come on disk: its restart budget counts failures without such progress.

Only names of folders are read. A checkpoint that turns out to be damaged counts too, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fairlead.errors import InvalidInput
from fairlead.types import WeightVersion


@dataclass(frozen=True, slots=True)
class CommittedUpdates:
    """Returns the update of the newest checkpoint; 0 without one."""

    folder: Path
    """The checkpoints of the run."""

    def __call__(self) -> int:
        """Read the folder."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            try:
                found.append(WeightVersion.parse(path.name))
            except InvalidInput:
                continue
        return max(found).update if found else 0
