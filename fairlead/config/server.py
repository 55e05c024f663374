"""Where a gRPC server listens and what it bears; shared by the model services and the weights service."""

from __future__ import annotations

from pydantic import Field

from fairlead.config.section import Section


class ServerSection(Section):
    """A service over gRPC."""

    addresses: tuple[str, ...] = ("127.0.0.1:0",)
    """Where clients find it, `host:port` or `dns:///name:port`. On one machine port 0 means any free one."""
    bind: str = ""
    """Address a replica listens on. Empty: the first of `addresses`."""
    max_message_bytes: int = Field(default=16 << 20, ge=1 << 10, le=1 << 30)
    """Largest gRPC message accepted."""
    max_in_flight_bytes: int = Field(default=256 << 20, ge=1 << 10)
    """Bytes of all requests in flight, those of streams aside; beyond it requests are refused with a retry
    delay. A single larger one is taken alone."""
    timeout_seconds: float = Field(default=120.0, gt=0, le=86_400)
    """Deadline of one call to it."""
    drain_seconds: float = Field(default=30.0, ge=0, le=3_600)
    """After SIGTERM: how long running calls may take to finish."""
    max_connection_age_seconds: float = Field(default=300.0, ge=1, le=86_400)
    """Connections are closed gracefully at this age, so that clients find new replicas."""

    @property
    def bind_address(self) -> str:
        """`host:port` that a replica listens on."""
        return self.bind or self.addresses[0]
