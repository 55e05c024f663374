"""Build the ASGI app: the page, its style sheet and script, the stream of changes, and the edge around."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from functools import cache
from importlib import resources

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Gauge
from starlette.types import ASGIApp, Scope

from fairlead import metrics
from fairlead.config.http import HttpSection
from fairlead.config.infrastructure import KeysSection
from fairlead.report.page import render_live, style
from services.dashboard.visitors import Visitors
from services.dashboard.watch import RunWatch
from services.runtime.access.control import AccessControl, Caller
from services.runtime.http import failures
from services.runtime.http.browsers import LOOPBACK_HOSTS, BrowserGuard
from services.runtime.http.call import HttpCall
from services.runtime.http.edge import HttpEdge, HttpService
from services.runtime.http.paths import path_of

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types fairlead"
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of every response."""
_QUIET_SECONDS = 10
"""Changes are looked for every second; after that many without any, a comment keeps the connection open."""
_FILES = {"live.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml"}


class _Metrics:
    """What the edge counts; nobody scrapes the page of a run."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight = Gauge("in_flight", "Requests being answered.", registry=registry)

    def record(self, route: str, status: int, seconds: float) -> None:
        """Count nothing."""


def make_app(watch: RunWatch, visitors: Visitors, section: HttpSection) -> ASGIApp:
    """Return the app that handles every request.

    Args:
        watch: the page.
        visitors: who may see it.
        section: the limits.
    """
    app = FastAPI(openapi_url=None, redirect_slashes=False)

    def respond(error: Exception, path: str, request_id: str) -> Response:
        failure = failures.failure_of(error, log_name="dashboard", path=path)
        headers = {**failure.headers, **HEADERS}
        return PlainTextResponse(f"{failure.message}\n", failure.status, headers)

    failures.install(app, respond)
    _add_routes(app, watch, visitors)

    async def authorize(caller: Caller, call: HttpCall, scope: Scope) -> None:
        # The link itself has the key in its query, and the icon is fetched before there is a cookie.
        if path_of(scope) not in ("/", "/icon.svg"):
            visitors.check(scope["headers"])

    registry = CollectorRegistry()
    service = HttpService(
        name="dashboard",
        authorize=authorize,
        respond=respond,
        route_of=lambda path: path if path in _PATHS else "other",
        metrics=_Metrics(registry),
        browsers=BrowserGuard(hosts=None if visitors.key else LOOPBACK_HOSTS, setting="--listen"),
    )
    access = AccessControl(KeysSection(), access_metrics=metrics.AccessMetrics(registry))
    return HttpEdge(app, section, service, access, access_log="off")


_PATHS = ("/", "/events", "/page.css", *(f"/{name}" for name in _FILES))


def _add_routes(app: FastAPI, watch: RunWatch, visitors: Visitors) -> None:
    @app.get("/")
    async def page(request: Request, key: str = "") -> Response:
        if visitors.is_key(key):
            return RedirectResponse("/", 303, {**HEADERS, "set-cookie": visitors.cookie()})
        visitors.check(request.scope["headers"])
        found = await watch.page()
        html = render_live(found, version=watch.version)
        return Response(html.encode(), headers=dict(HEADERS), media_type="text/html; charset=utf-8")

    @app.get("/events")
    async def events(request: Request, after: str = "") -> Response:
        version = request.headers.get("last-event-id") or after
        return StreamingResponse(
            _stream(watch, version), media_type="text/event-stream", headers=dict(HEADERS)
        )

    @app.get("/page.css")
    async def sheet() -> Response:
        return Response(style(), headers=dict(HEADERS), media_type="text/css; charset=utf-8")

    for name, media_type in _FILES.items():
        _add_file(app, name, media_type)


def _add_file(app: FastAPI, name: str, media_type: str) -> None:
    @app.get(f"/{name}")
    async def file() -> Response:
        return Response(_content(name), headers=dict(HEADERS), media_type=media_type)


async def _stream(watch: RunWatch, version: str) -> AsyncIterator[str]:
    """Yield server-sent events: the parts of the page that are new, or that the page must be loaded again."""
    quiet = 0
    yield "retry: 1000\n\n"
    async for change in watch.changes(version):
        quiet += 1
        if change is not None:
            event = "reload" if change.whole else "parts"
            yield f"event: {event}\nid: {change.version}\ndata: {json.dumps(change.parts)}\n\n"
            quiet = 0
        elif quiet >= _QUIET_SECONDS:
            yield ": nothing new\n\n"
            quiet = 0


@cache
def _content(name: str) -> bytes:
    return resources.files("services.dashboard").joinpath("static", name).read_bytes()
