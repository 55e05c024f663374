"""`[gateway]`: the process that speaks HTTP for the reward and policy services."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.config.section import Section


class GatewaySection(Section):
    """HTTP in, gRPC out. It asks the services at `reward.addresses` and `policy.addresses`; an address with
    port 0 means that there is none.
    """

    replicas: int = Field(default=0, ge=0, le=64)
    """Processes that a run on one machine starts."""
    addresses: tuple[str, ...] = ("127.0.0.1:0",)
    """Where callers find it, `host:port`. On one machine port 0 means any free one."""
    bind: str = ""
    """Address a replica listens on. Empty: the first of `addresses`."""
    tls: Literal["full", "server", "off"] = "full"
    """What of `[tls]` it shows its callers: `full` all of it, `server` its certificate without asking for
    theirs, `off` plain HTTP, behind a proxy that ends TLS. To the services it speaks as `[tls]` says."""
    timeout_seconds: float = Field(default=120.0, gt=0, le=86_400)
    """Deadline of a request, reading it included; a caller may ask for less by `X-Request-Timeout`."""
    retry_attempts: int = Field(default=3, ge=1, le=100)
    """Tries of one call to a service within the deadline before the caller is told; 1 hands a refusal on at
    once, more wait as long as the service asks for."""
    max_body_bytes: int = Field(default=16 << 20, ge=1 << 10, le=1 << 30)
    """Largest body accepted."""
    max_in_flight: int = Field(default=1_024, ge=1, le=1_000_000)
    """Requests at the same time; beyond it they are refused with a retry delay."""
    keep_alive_seconds: float = Field(default=65.0, gt=0, le=3_600)
    """An idle connection is closed after so long: later than load balancers do, which is 60 s for most."""
    drain_seconds: float = Field(default=30.0, ge=0, le=3_600)
    """After SIGTERM: how long running requests may take to finish."""
    watch_seconds: float = Field(default=2.0, gt=0, le=60)
    """How often the services are asked what they serve; /readyz depends on the answer."""
    chat_max_tokens: int = Field(default=1_024, ge=1, le=131_072)
    """Tokens of an answer of /v1/chat/completions at most, where the caller does not say."""
    chat_log: str = ""
    """File that every exchange of /v1/chat/completions is appended to, as JSON lines that `fairlead score`
    and `data.prompts` read; empty: none. Replicas need a file each: `{pid}` in it is the process's id."""
    chat_log_bytes: int = Field(default=64 << 20, ge=1 << 10)
    """Size at which the chat log is put aside as `<file>.1`, `.2` …"""
    chat_log_files: int = Field(default=10, ge=1, le=10_000)
    """Files put aside that are kept."""
