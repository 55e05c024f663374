"""TensorBoard: event files in the run's folder, a folder for each stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """The event files of a stage."""

    def __init__(self, folder: Path, stage: str, *, first_step: int) -> None:
        """
        Args:
            folder: of all stages.
            stage: such as `ppo`.
            first_step: TensorBoard hides what an interrupted run wrote for later steps.
        """
        self._stage = stage
        purged = first_step + 1 if first_step else None
        self._writer = SummaryWriter(folder / stage, purge_step=purged)

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """Write scalars."""
        for name, value in figures.items():
            self._writer.add_scalar(f"{self._stage}/{name}", value, step)

    def close(self, *, failed: bool) -> None:
        """Flush the file."""
        self._writer.close()
