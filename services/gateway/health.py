"""/healthz, /readyz and /metrics, for probes and Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest


def router(*, ready: Callable[[], bool], registry: CollectorRegistry) -> APIRouter:
    """Return the routes."""
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
        responses={503: {"description": "The reward service is not available, or the gateway is draining."}},
    )
    async def readyz() -> Response:
        """200 while the reward service is available and the gateway is not draining.

        Without a reward service in the configuration, the policy counts.
        """
        return PlainTextResponse("ok\n") if ready() else PlainTextResponse("not ready\n", 503)

    @routes.head("/metrics", include_in_schema=False)
    @routes.get("/metrics", response_class=PlainTextResponse, summary="Prometheus metrics")
    async def prometheus() -> Response:
        """All metrics of this process; docs/metrics.md describes them."""
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_PLAIN_1_0_0})

    return routes
