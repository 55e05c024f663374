"""/healthz, /readyz and /metrics: what probes and Prometheus ask."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest


def router(*, ready: Callable[[], bool], registry: CollectorRegistry) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz", response_class=PlainTextResponse, summary="Whether the process lives")
    async def healthz() -> str:
        """200 as long as it can answer."""
        return "ok\n"

    @routes.get(
        "/readyz",
        response_class=PlainTextResponse,
        summary="Whether to send requests here",
        responses={503: {"description": "No service answers, or the process drains."}},
    )
    async def readyz() -> Response:
        """200 while a service behind it answers and it does not drain."""
        return PlainTextResponse("ok\n") if ready() else PlainTextResponse("not ready\n", 503)

    @routes.get("/metrics", response_class=PlainTextResponse, summary="For Prometheus")
    async def prometheus() -> Response:
        """Every metric of this process; docs/metrics.md."""
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_PLAIN_1_0_0})

    return routes
