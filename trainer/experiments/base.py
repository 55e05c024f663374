"""What the tracker writes figures to, besides its own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class ExperimentLog(Protocol):
    """One stage of a run in one tool."""

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of a finished step.

        Args:
            step: number of the step, from 1; the same one again replaces it after a restart.
            figures: by name, without the stage.
        """
        ...

    def close(self, *, failed: bool) -> None:
        """Write what is left; the stage has ended, or failed and may be continued."""
        ...


@dataclass(frozen=True, slots=True)
class Experiment:
    """What a tool shows about a stage."""

    run: str
    """Name of the run."""
    stage: str
    """Such as `ppo`."""
    project: str
    """`observe.tracker_project`."""
    folder: Path
    """The run's folder."""
    settings: Mapping[str, object]
    """The configuration by section and key, without secrets."""
