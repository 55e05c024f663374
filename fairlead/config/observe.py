"""`[observe]`: logs and metrics of every process."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.config.section import Section

AccessLog = Literal["auto", "off", "plain", "texts"]


class ObserveSection(Section):
    """What a process says about itself."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe level that is logged."""
    log_style: Literal["auto", "json", "human"] = "auto"
    """`auto`: readable on a terminal, JSON lines elsewhere."""
    access_log: AccessLog = "auto"
    """One line for every call: `plain` has method, status, id of the key, request id, tokens and seconds,
    `texts` also the beginning of what was asked, which may be private. `auto`: `plain` at the gateway, `off`
    at the services, which would say the same again."""
    metrics_host: str = "127.0.0.1"
    """Address that /metrics and /readyz listen on; 0.0.0.0 in a container."""
    metrics_port: int = Field(default=0, ge=-1, le=65_535)
    """Port of /metrics and /readyz; 0 is any free one, -1 none."""
    stall_seconds: float = Field(default=1_800.0, ge=0, le=604_800)
    """A process of PPO or of serving that waits so long for one call, forward pass or phase says for what and
    ends with exit code 4, to be started again; 0: never. The wait for rollouts: `queue.give_up_seconds`."""
    metrics_tls: bool = False
    """That port speaks TLS as `[tls]` says, instead of plain text."""
    tensorboard: bool = True
    """Write TensorBoard event files beside metrics.jsonl."""
    rollout_samples: int = Field(default=32, ge=0, le=100_000)
    """Answers of every update of PPO that are kept in samples_ppo.jsonl, the first of the batch."""
