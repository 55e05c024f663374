"""`[local]`: how a run on one machine treats its processes."""

from __future__ import annotations

from pydantic import Field

from fairlead.config.section import Section


class LocalSection(Section):
    """The supervisor of a run on one machine."""

    ready_seconds: float = Field(default=120.0, gt=0, le=3_600)
    """A process that is not ready after so long is a failure."""
    hung_seconds: float = Field(default=60.0, gt=0, le=86_400)
    """A process that was ready and answers no probe for so long is killed and started again."""
    drain_seconds: float = Field(default=30.0, gt=0, le=3_600)
    """How long processes may take to end after SIGTERM, then SIGKILL."""
    max_restarts: int = Field(default=20, ge=0, le=100_000)
    """Restarts of one process, without a minute of health between, before the run stops with the reason."""
    backoff_seconds: float = Field(default=0.5, gt=0, le=60)
    """Delay before the first restart; doubles up to 30 s, and falls back after a minute of health."""
