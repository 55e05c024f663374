"""/healthz, /readyz and /metrics, for probes and Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest


def router(*, ready: Callable[[], bool], registry: CollectorRegistry, readiness: str) -> APIRouter:
    """Return the routes.

    Args:
        ready: whether /readyz answers with 200.
        registry: the metrics that /metrics shows.
        readiness: when the service is ready, for the API page: "the store is open".
    """
    routes = APIRouter(tags=["health"])

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz", response_class=PlainTextResponse, summary="Liveness")
    async def healthz() -> str:
        """200 while the process can answer requests."""
        return "ok\n"

    @routes.head("/readyz", include_in_schema=False)
    @routes.get(
        "/readyz",
        response_class=PlainTextResponse,
        summary="Readiness",
        description=f"200 while {readiness} and the service is not draining.",
        responses={503: {"description": "The service is not ready, or it is draining."}},
    )
    async def readyz() -> Response:
        return PlainTextResponse("ok\n") if ready() else PlainTextResponse("not ready\n", 503)

    @routes.head("/metrics", include_in_schema=False)
    @routes.get("/metrics", response_class=PlainTextResponse, summary="Prometheus metrics")
    async def prometheus() -> Response:
        """All metrics of this process; docs/metrics.md describes them."""
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_PLAIN_1_0_0})

    return routes
