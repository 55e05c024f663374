"""What every client is: addresses, a deadline and retries around one service's stub.

A service's own file adds its calls. Knows no message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Generic, Self, TypedDict, TypeVar, Unpack

from grpc import aio

from fairlead.rpc.credentials import Credentials
from fairlead.rpc.replicas import Replicas
from fairlead.rpc.retry import RetryPolicy
from fairlead.rpc.tls import TlsFiles

if TYPE_CHECKING:
    from fairlead.config import RunConfig

_Stub = TypeVar("_Stub")


class ClientOptions(TypedDict, total=False):
    """Options of every client."""

    timeout_seconds: float | None
    """Deadline of a call, all its tries together; a minute if not given, two of a policy's."""
    retry: RetryPolicy | None
    """Limits of retrying."""
    api_key: str | None
    """Shown with every call; FAIRLEAD_API_KEY of the environment if not given, none if empty."""
    tls: TlsFiles | bool | None
    """Certificates: `fairlead.Tls`, or `[tls]` of a run. True trusts the authorities that gRPC brings; plain
    text if not given."""
    allow_insecure: bool
    """Show the key in plain text to other machines, too."""


def options_of(
    config: RunConfig, *, timeout_seconds: float | None = None, retry: RetryPolicy | None = None
) -> ClientOptions:
    """How the processes of a run connect to each other."""
    return ClientOptions(
        timeout_seconds=timeout_seconds,
        retry=retry,
        tls=config.tls,
        allow_insecure=config.keys.allow_insecure,
    )


class AsyncClient(ABC, Generic[_Stub]):
    """The replicas of one service; an async context manager, used within one event loop."""

    _service: ClassVar[str]
    _timeout_seconds: ClassVar[float] = 60.0

    def __init__(self, addresses: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        """
        Args:
            addresses: `host:port` of every replica, or one `dns:///name:port`.
            **options: see `ClientOptions`.

        Raises:
            ConfigError: if an address is none, certificates cannot be used, or a key would travel openly.
        """
        timeout_seconds = options.get("timeout_seconds")
        self._replicas = Replicas(
            addresses,
            self._make_stub,
            service=self._service,
            timeout_seconds=self._timeout_seconds if timeout_seconds is None else timeout_seconds,
            retry=options.get("retry") or RetryPolicy(),
            credentials=partial(
                Credentials,
                api_key=options.get("api_key"),
                tls=options.get("tls"),
                allow_insecure=options.get("allow_insecure", False),
            ),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._replicas.close()

    @abstractmethod
    def _make_stub(self, channel: aio.Channel) -> _Stub:
        """The generated stub on a channel."""
