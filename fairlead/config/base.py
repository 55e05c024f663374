"""Base classes and types that several sections of a run's configuration share; no concrete section."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A frozen table of settings. Unknown keys are refused; the docstring of a field is its documentation."""

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
    """The device, data type and threads of one process."""

    device: Device = "auto"
    """Device of the model; `auto` uses a GPU if there is one."""
    dtype: DType = "float32"
    """Data type in which the body of the model computes. Heads, log-probs, trained weights and optimizer
    state are always float32."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of the process; 0 uses OMP_NUM_THREADS or torch's default."""


class ServerSection(Section):
    """Limits of every server of the run: the policy, reward, reference and weights services and, for
    `drain_seconds`, the gateway. To give one process another limit, set it in the environment of that
    process, such as `FAIRLEAD_SERVER__DRAIN_SECONDS=60`.
    """

    max_message_bytes: int = Field(default=16 << 20, ge=1 << 10, le=1 << 30)
    """Maximum size of a gRPC message that a service accepts, in bytes."""
    max_in_flight_bytes: int = Field(default=256 << 20, ge=1 << 10)
    """Maximum total size of the unary requests in progress, in bytes. Requests above it are refused with a
    retry delay; a request that is larger on its own is accepted when no other is in progress."""
    max_connection_age_seconds: float = Field(default=300.0, ge=1, le=86_400)
    """Age at which a server closes a gRPC connection gracefully, so that clients discover new replicas."""
    drain_seconds: float = Field(default=30.0, ge=0, le=3_600)
    """Time that requests in progress have to finish after SIGTERM."""


class ServiceSection(Section):
    """The address and the call deadline of a gRPC service."""

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
    """The certificate of each process, for everything that it serves and calls. Files are in PEM format and
    are read again when they change, so certificates can be renewed without a restart. If nothing is set,
    connections are not encrypted.
    """

    enabled: bool = False
    """Use TLS although no file is set, for a client of servers whose certificate authority the system
    trusts."""
    certificate: str = ""
    """Certificate of the process, followed by intermediate certificates. Servers need one; clients present it
    to servers that require one."""
    key: str = ""
    """Private key of the certificate, without a passphrase."""
    ca: str = ""
    """Trusted certificate authorities: clients verify servers with them, and servers verify clients. Empty:
    clients use those that come with gRPC."""
    mutual: bool = False
    """Servers require a client certificate signed by one of `ca` (mTLS), for health checks too."""
    server_name: str = ""
    """Name that clients expect in the certificate of a server. Empty: the host name of the address."""

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("`certificate` and `key` must be set together")
        if self.mutual and not (self.certificate and self.ca):
            raise ValueError("`mutual` requires `certificate`, `key` and `ca`")
        return self

    @property
    def on(self) -> bool:
        """Whether the process uses TLS."""
        return self.enabled or bool(self.certificate or self.ca)
