"""Probes: how the supervisor and `fairlead status` learn that a process is ready or alive.

A probe is an async call that returns True or False. It never raises because a server is not there yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fairlead.rpc.tls import Certificates, TlsFiles

Probe = Callable[[], Awaitable[bool]]
"""Called again and again until it returns True."""

READY_PATH = "/readyz"
"""Answers 200 when the process is ready."""
ALIVE_PATH = "/healthz"
"""Answers 200 while the process is alive."""

_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class GrpcHealth:
    """A probe of `grpc.health.v1` for the whole server (service "")."""

    address: str
    """`host:port`."""
    tls: TlsFiles | None = None
    """TLS files of the run; None for plain text."""

    async def __call__(self) -> bool:
        """Return whether the server answers SERVING."""
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        from fairlead.rpc.credentials import Credentials

        try:
            credentials = Credentials([self.address], api_key="", tls=self.tls)
            async with credentials.channel(self.address, ()) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@dataclass(frozen=True, slots=True)
class HttpHealth:
    """A probe of a path on the metrics port of a process."""

    host: str
    """Host name or address."""
    port: int
    """TCP port."""
    path: str
    """`READY_PATH` or `ALIVE_PATH`."""
    tls: TlsFiles | None = None
    """TLS files of the run; None for plain text."""

    async def __call__(self) -> bool:
        """Return whether the process answers 200."""
        return await get(self.host, self.port, self.path, tls=self.tls) is not None


@dataclass(frozen=True, slots=True)
class RedisPing:
    """A probe of a Redis or Valkey that needs no password."""

    host: str
    """Host name or address."""
    port: int
    """TCP port."""

    async def __call__(self) -> bool:
        """Return whether the server answers PING; a refusal for want of a password is an answer."""
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                try:
                    writer.write(b"PING\r\n")
                    await writer.drain()
                    answer = await reader.readline()
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError):
            return False
        return answer.startswith((b"+PONG", b"-NOAUTH"))


async def get(host: str, port: int, path: str, *, tls: TlsFiles | None = None) -> bytes | None:
    """Return the body of a page on the metrics port; None if the process does not answer 200 in time."""
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            context = None if tls is None else Certificates(tls).client_context()
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                await writer.drain()
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    return body if head.split()[1:2] == [b"200"] else None
