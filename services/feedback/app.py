"""Build the ASGI app: the routes of the API, their page, and the edge around them.

Knows nothing about servers; `__main__.py` runs the app.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi.responses import JSONResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import REGISTRY, CollectorRegistry
from starlette.routing import Match
from starlette.types import ASGIApp, Scope

from fairlead import __version__
from fairlead.config.infrastructure import AccessLog
from services.feedback import api, pages
from services.feedback.identity import Authentication
from services.feedback.pages.page import Renderer
from services.feedback.routes import OPEN, ROUTES, is_page, template_of
from services.feedback.service import Service
from services.runtime.access.control import AccessControl
from services.runtime.http import failures, health
from services.runtime.http.api_page import describe_headers
from services.runtime.http.browsers import LOOPBACK_HOSTS, BrowserGuard
from services.runtime.http.edge import HttpEdge, HttpService

_DESCRIPTION = """Tasks for people and programs that rank answers or write demonstrations, and what they said.

People sign in and have a session; programs send an API key. On the machine itself, without API keys, callers
need neither, except for working on tasks: `POST /v1/feedback/sessions` with a handle.

`X-Request-Id` identifies a request in the logs. A request that hands something in may carry
`Idempotency-Key`: sent again with the same key, it changes nothing and has the same response.
"""


def make_app(
    service: Service,
    *,
    ready: Callable[[], bool],
    access: AccessControl,
    access_log: AccessLog = "auto",
    registry: CollectorRegistry = REGISTRY,
) -> ASGIApp:
    """Return the app that handles every request to the service's port.

    Args:
        service: the store and the configuration.
        ready: whether /readyz answers with 200.
        access: authenticates programs and enforces the limits of their keys.
        access_log: whether to log each request, and whether with its body.
        registry: the metrics that /metrics shows.
    """
    app = FastAPIOffline(
        redirect_slashes=False,
        title="Fairlead feedback",
        version=__version__,
        description=_DESCRIPTION,
        redoc_url=None,
        static_url="/docs/files",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    renderer = Renderer(service)

    def respond(error: Exception, path: str, request_id: str) -> Response:
        """Return the response to a request that failed: a page, or JSON for programs."""
        failure = failures.failure_of(error, log_name="feedback", path=path)
        if is_page(path):
            return renderer.failure(failure, path, request_id)
        content = failures.error_content(failures.with_path(failure, path), request_id)
        return JSONResponse(content, failure.status, failure.headers)

    failures.install(app, respond)
    for router in (*api.routers(service), *pages.routers(service, renderer)):
        app.include_router(router)
    app.include_router(health.router(ready=ready, registry=registry, readiness="the store is open"))
    closed = None if service.is_open else _needs_key
    describe_headers(app, requires_key=closed)

    def exists(scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in app.router.routes)

    http = HttpService(
        name="feedback",
        authorize=Authentication(service, access, exists=exists).authorize,
        respond=respond,
        route_of=lambda path: template_of(path) or "other",
        metrics=service.metrics,
        browsers=BrowserGuard(
            origin=service.section.origin,
            hosts=LOOPBACK_HOSTS if service.is_open else None,
            setting="feedback.origin",
        ),
    )
    service.metrics.add_routes(sorted({path for _, path in ROUTES}))
    return HttpEdge(app, service.section, http, access, access_log=access_log)


def _needs_key(path: str) -> bool:
    return any(need is not OPEN for (_, listed), need in ROUTES.items() if listed == path)
