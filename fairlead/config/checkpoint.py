"""`[checkpoint]`: how often the trainer's truth is written, and how much of it is kept."""

from __future__ import annotations

from pydantic import Field

from fairlead.config.section import Section


class CheckpointSection(Section):
    """Checkpoints of PPO, in `checkpoints/` of the run's folder."""

    every_updates: int = Field(default=5, ge=1)
    """Updates between checkpoints; the last update always writes one."""
    keep: int = Field(default=2, ge=1, le=1_000)
    """Newest valid checkpoints kept."""
