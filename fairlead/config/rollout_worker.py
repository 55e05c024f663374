"""`[rollout_worker]`: the process that ties the services together."""

from __future__ import annotations

from pydantic import Field

from fairlead.config.section import Section


class RolloutWorkerSection(Section):
    """Claims tasks, calls the services, hands back rollouts."""

    replicas: int = Field(default=1, ge=0, le=1_024)
    """Processes that a run on one machine starts."""
    max_in_flight: int = Field(default=64, ge=1, le=4_096)
    """Tasks that one worker has claimed at the same time."""
    drain_seconds: float = Field(default=20.0, ge=0, le=3_600)
    """After SIGTERM: how long tasks in flight may take; the rest is left to the peers."""
    hedge_factor: float = Field(default=4.0, ge=0, le=1_000)
    """A call that has taken so many times the usual, and a second, is sent to another replica as well; the
    first answer counts. So a replica that hangs or is slow is not waited for. 0: never."""
    retry_attempts: int = Field(default=6, ge=1, le=100)
    """Tries of one call within its deadline before the task is given back."""
