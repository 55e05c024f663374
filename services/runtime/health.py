"""grpc.health.v1 for one server: SERVING or NOT_SERVING, reported to every watcher.

Knows nothing about the services. The servicer of grpcio-health-checking drops all watchers of a service when
one of them disconnects, and its watches outlive a drain; this one does neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Status = health_pb2.HealthCheckResponse

LIVENESS = "liveness"
"""Name that is SERVING whenever the event loop answers; for liveness probes, which must check nothing else.
"""


class Health:
    """One status for the server (service "") and all its services, except `LIVENESS`."""

    def __init__(self, services: Sequence[str]) -> None:
        self._services = frozenset(["", LIVENESS, *services])
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def serving(self) -> bool:
        """Whether the status is SERVING."""
        return self._serving

    def set_serving(self, serving: bool) -> None:
        """Set the status and report it to every watcher. Has no effect once closed."""
        if not self._closed and serving != self._serving:
            self._serving = serving
            self._notify()

    def close(self) -> None:
        """Set NOT_SERVING permanently and end all watches."""
        self._serving = False
        self._closed = True
        self._notify()

    def add_to(self, server: aio.Server) -> None:
        """Register the servicer."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[object, object]
    ) -> health_pb2.HealthCheckResponse:
        """Return the current status; fail with NOT_FOUND for an unknown service."""
        if request.service not in self._services:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"this server has no service {request.service[:80]!r}"
            )
        return self._response(request.service)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[object, object]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Send the current status and every change until the server drains."""
        last = None
        while True:
            changed = self._changed
            response = self._response(request.service)
            if response.status != last:
                last = response.status
                yield response
            if self._closed:
                return
            await changed.wait()

    def _response(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in self._services:
            return _Status(status=_Status.SERVICE_UNKNOWN)
        serving = self._serving or service == LIVENESS
        return _Status(status=_Status.SERVING if serving else _Status.NOT_SERVING)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
