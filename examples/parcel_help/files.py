"""The data files of the quickstart, in addition to those of its rounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fairlead.rounds.files import RoundFiles


@dataclass(frozen=True, slots=True)
class Files(RoundFiles):
    """Paths of the files."""

    @property
    def demonstrations(self) -> Path:
        """Demonstrations for SFT."""
        return self.root / "demonstrations.jsonl"

    @property
    def prompts(self) -> Path:
        """All questions, the prompts of PPO."""
        return self.root / "prompts.jsonl"
