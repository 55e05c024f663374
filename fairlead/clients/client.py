"""What every client is: addresses, a deadline and retries around one service's stub.

A service's own file adds its calls. Knows no message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import ClassVar, Generic, Self, TypeVar

from grpc import aio

from fairlead.channel import Replicas
from fairlead.retry import RetryPolicy

_Stub = TypeVar("_Stub")


class AsyncClient(ABC, Generic[_Stub]):
    """The replicas of one service; an async context manager, used within one event loop."""

    _service: ClassVar[str]
    _timeout_seconds: ClassVar[float] = 60.0

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        timeout_seconds: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        """
        Args:
            addresses: `host:port` of every replica, or one `dns:///name:port`.
            timeout_seconds: deadline of a call, all its tries together; a minute, two of a policy's.
            retry: limits of retrying.

        Raises:
            ConfigError: if an address is none.
        """
        self._replicas = Replicas(
            addresses,
            self._make_stub,
            service=self._service,
            timeout_seconds=self._timeout_seconds if timeout_seconds is None else timeout_seconds,
            retry=retry or RetryPolicy(),
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
