"""The base of every client: addresses, a deadline and retries around the stub of one service.

The file of each service adds its calls. Knows nothing about messages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Generic, Self, TypedDict, TypeVar, Unpack

from grpc import aio

from fairlead.errors import InvalidInput
from fairlead.rpc.credentials import Credentials, Metadata
from fairlead.rpc.replicas import Replicas
from fairlead.rpc.retry import RetryPolicy
from fairlead.rpc.status import MAX_REQUEST_TOKENS
from fairlead.rpc.tls import TlsFiles

if TYPE_CHECKING:
    from fairlead.config import RunConfig

_Stub = TypeVar("_Stub")


class ClientOptions(TypedDict, total=False):
    """Options of every client."""

    timeout_seconds: float | None
    """Deadline of a call, all its attempts together. Default: 60, for a policy client 120."""
    retry: RetryPolicy | None
    """Limits of retries."""
    api_key: str | None
    """API key sent with every call. Default: FAIRLEAD_API_KEY of the environment; "" sends none."""
    tls: TlsFiles | bool | None
    """Certificates: `fairlead.Tls`, or `[tls]` of a run; True for the authorities that come with gRPC.
    Default: plain text."""
    allow_insecure: bool
    """Allow sending the API key to other machines in plain text."""


def options_of(
    config: RunConfig, *, timeout_seconds: float | None = None, retry: RetryPolicy | None = None
) -> ClientOptions:
    """Return the options with which the processes of a run connect to each other."""
    return ClientOptions(
        timeout_seconds=timeout_seconds,
        retry=retry,
        tls=config.tls,
        allow_insecure=config.keys.allow_insecure,
    )


class AsyncClient(ABC, Generic[_Stub]):
    """A client of one service and its replicas. An async context manager, used within one event loop."""

    _service: ClassVar[str]
    _timeout_seconds: ClassVar[float] = 60.0

    def __init__(self, addresses: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        """
        Args:
            addresses: `host:port` of every replica, or one `dns:///name:port`.
            **options: see `ClientOptions`.

        Raises:
            ConfigError: for an invalid address, unusable certificates, or a key that would be sent in plain
                text.
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
        """Close the connections."""
        await self._replicas.close()

    @abstractmethod
    def _make_stub(self, channel: aio.Channel) -> _Stub:
        """Return the generated stub on a channel."""


@contextmanager
def building(field: str) -> Iterator[None]:
    """Turn errors of protobuf (a number out of range, text that is not Unicode) into InvalidInput."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise InvalidInput(field, got=str(error), allowed="values that fit the message") from error


def token_limit(max_request_tokens: int | None) -> Metadata:
    """Return the metadata that makes a service refuse a request with more tokens."""
    return () if max_request_tokens is None else ((MAX_REQUEST_TOKENS, str(max_request_tokens)),)
