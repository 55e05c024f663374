"""How the supervisor finds out that a process is ready: by gRPC health, or by `/readyz`.

A probe is an async call that answers yes or no and never raises for a server that is not there yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fairlead.rpc.tls import Identity, TlsFiles

Probe = Callable[[], Awaitable[bool]]
"""Asked again and again until it says yes."""

_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class GrpcHealth:
    """`grpc.health.v1` of the whole server (service "")."""

    address: str
    """`host:port`."""
    tls: TlsFiles | None = None
    """Of the run; None is plain text."""

    async def __call__(self) -> bool:
        """Whether it says SERVING."""
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
class Readyz:
    """`GET /readyz` on the port of the metrics."""

    host: str
    """Host name or address."""
    port: int
    """TCP port."""
    tls: TlsFiles | None = None
    """Of the run; None is plain text."""

    async def __call__(self) -> bool:
        """Whether it answers 200."""
        return await get(self.host, self.port, "/readyz", tls=self.tls) is not None


@dataclass(frozen=True, slots=True)
class Healthz:
    """`GET /healthz` on the port of the metrics: 200 while the process lives."""

    host: str
    """Host name or address."""
    port: int
    """TCP port."""
    tls: TlsFiles | None = None
    """Of the run; None is plain text."""

    async def __call__(self) -> bool:
        """Whether it answers 200."""
        return await get(self.host, self.port, "/healthz", tls=self.tls) is not None


async def get(host: str, port: int, path: str, *, tls: TlsFiles | None = None) -> bytes | None:
    """The body of what is at a path of a process's page; None if it does not answer 200 in time."""
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            context = None if tls is None else Identity(tls).client_context()
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
