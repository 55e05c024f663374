"""What sections share: the base class, device and type, the address of a service, TLS. Knows no section."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A frozen table of settings. Unknown keys are refused; docstrings under fields are their help."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


Device = Literal["auto", "cpu", "cuda"]


DType = Literal["float32", "bfloat16"]


class ComputeSection(Section):
    """Device, type and threads of one process."""

    device: Device = "auto"
    """`auto` takes the GPU if there is one."""
    dtype: DType = "float32"
    """Computation type of the model's body. Heads, log-probs, weights that learn and their optimizer are
    float32 whatever it is."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of the process; 0 leaves the choice to OMP_NUM_THREADS or to torch."""


class ServerSection(Section):
    """Limits of every server that the run starts: the policy, reward, reference and weights services and, for
    `drain_seconds`, the gateway. To give one process other limits, set the environment of that process,
    such as `FAIRLEAD_SERVER__DRAIN_SECONDS`.
    """

    max_message_bytes: int = Field(default=16 << 20, ge=1 << 10, le=1 << 30)
    """Largest gRPC message that a service accepts, in bytes."""
    max_in_flight_bytes: int = Field(default=256 << 20, ge=1 << 10)
    """Largest total size of the unary requests in progress, in bytes. Further requests are refused with a
    retry delay; a single request above the limit is accepted when no other is in progress."""
    max_connection_age_seconds: float = Field(default=300.0, ge=1, le=86_400)
    """Age at which a gRPC connection is closed gracefully, so that clients discover new replicas."""
    drain_seconds: float = Field(default=30.0, ge=0, le=3_600)
    """Time that requests in progress have to finish after SIGTERM."""


class ServiceSection(Section):
    """A gRPC service: where it listens and how long a call may take."""

    addresses: tuple[str, ...] = ("127.0.0.1:0",)
    """Addresses that clients connect to, `host:port` or `dns:///name:port`. On one machine, port 0 means any
    free port."""
    bind: str = ""
    """Address that a replica listens on. Empty: the first of `addresses`."""
    timeout_seconds: float = Field(default=120.0, gt=0, le=86_400)
    """Deadline of one call to the service."""
    max_message_bytes: int | None = Field(default=None, ge=1 << 10, le=1 << 30)
    """Deprecated: overrides `server.max_message_bytes` for this service."""
    max_in_flight_bytes: int | None = Field(default=None, ge=1 << 10)
    """Deprecated: overrides `server.max_in_flight_bytes` for this service."""
    max_connection_age_seconds: float | None = Field(default=None, ge=1, le=86_400)
    """Deprecated: overrides `server.max_connection_age_seconds` for this service."""
    drain_seconds: float | None = Field(default=None, ge=0, le=3_600)
    """Deprecated: overrides `server.drain_seconds` for this service."""

    @property
    def bind_address(self) -> str:
        """The `host:port` that a replica listens on."""
        return self.bind or self.addresses[0]


class TlsSection(Section):
    """One identity for everything that a process serves and calls. Files are PEM and read again when they
    change, so that certificates are renewed without a restart. Empty: plain text.
    """

    enabled: bool = False
    """Speak TLS although nothing below is set: a client of servers whose authority the system trusts."""
    certificate: str = ""
    """The process's certificate and those between it and its authority. A server needs one; a client shows it
    where servers ask for it."""
    key: str = ""
    """The certificate's private key, without a passphrase."""
    ca: str = ""
    """Authorities that are trusted: by clients for servers, and by servers for clients. Empty: clients trust
    those that gRPC brings."""
    mutual: bool = False
    """Servers ask callers for a certificate that one of `ca` has signed (mTLS); health is no exception."""
    server_name: str = ""
    """The name that clients expect in servers' certificates. Empty: that of the address called."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("`certificate` and `key` only together")
        if self.mutual and not (self.certificate and self.ca):
            raise ValueError("`mutual` needs `certificate`, `key` and `ca`")
        return self

    @property
    def on(self) -> bool:
        """Whether the process speaks TLS."""
        return self.enabled or bool(self.certificate or self.ca)
