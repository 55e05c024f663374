"""Build the ASGI app: the routes of every dialect, their API page, and the edge around them.

Knows nothing about servers; `server.py` runs the app.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import REGISTRY, CollectorRegistry
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match
from starlette.types import ASGIApp, Scope

from fairlead import __version__, metrics
from fairlead.config.http import GatewaySection
from fairlead.config.infrastructure import AccessLog
from fairlead.errors import ConfigError
from fairlead.rpc.status import REQUEST_ID
from services.gateway import dialects, error_formats
from services.gateway.backend import Backend
from services.gateway.collection import Collector
from services.gateway.dialects.inference_requests import HEADER_LENGTH
from services.gateway.exchange_log import ExchangeLog
from services.gateway.scopes import DOCS_FILES, need_of
from services.runtime.access.control import AccessControl, Caller, Need
from services.runtime.http import failures, health, limit_headers
from services.runtime.http.api_page import describe_headers
from services.runtime.http.call import HttpCall
from services.runtime.http.edge import HttpEdge, HttpService
from services.runtime.http.paths import path_of

_EXPOSED = (REQUEST_ID, "retry-after", "retry-after-ms", HEADER_LENGTH, *limit_headers.NAMES)
"""Headers of responses that a web page may read."""
_READINESS = "the reward service, or the policy if no reward service is configured, is available"
_DESCRIPTION = """Scores from the reward model and completions from the policy, over HTTP.

The gateway accepts the request formats of several clients. The reward service computes the scores and batches
the requests of all callers.

Two headers apply to every request. `X-Request-Id` identifies it in the logs of every process it passes
through. `X-Request-Timeout` is the number of seconds you wait for the response: work that has not started by
then is not started, and work in progress stops when you close the connection.
"""


def make_app(
    backend: Backend,
    section: GatewaySection,
    *,
    ready: Callable[[], bool],
    access: AccessControl,
    access_log: AccessLog = "auto",
    exchange_log: ExchangeLog | None = None,
    collector: Collector | None = None,
    registry: CollectorRegistry = REGISTRY,
) -> ASGIApp:
    """Return the app that handles every request to the gateway's port.

    Args:
        backend: the services to call.
        section: the gateway's limits.
        ready: whether /readyz answers with 200.
        access: authenticates callers and enforces the limits of their keys.
        access_log: whether to log each request, and whether with its body.
        exchange_log: where chat completions are logged, if they are.
        collector: sends prompts to the feedback service, if it is asked for.
        registry: the metrics that /metrics shows.
    """
    app = FastAPIOffline(
        redirect_slashes=False,
        title="Fairlead",
        version=__version__,
        description=_DESCRIPTION,
        redoc_url=None,
        static_url=DOCS_FILES,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    failures.install(app, error_formats.response_to)
    for router in dialects.routers(
        backend,
        exchange_log=exchange_log,
        collector=collector,
        chat_max_tokens=section.chat_max_tokens,
    ):
        app.include_router(router)
    app.include_router(health.router(ready=ready, registry=registry, readiness=_READINESS))

    closed = (lambda path: need_of(path) is not None) if access.requires_keys else None
    describe_headers(app, requires_key=closed)

    async def authorize(caller: Caller, call: HttpCall, scope: Scope) -> None:
        need: Need = need_of(path_of(scope))
        # Any valid key may learn that a path does not exist.
        if need == "admin" and not any(r.matches(scope)[0] is not Match.NONE for r in app.router.routes):
            need = "any"
        access.authorize(caller, bearer=call.authorization, scope=need)

    if section.root_path:
        _check_root(section.root_path, app)
    service = HttpService(
        name="gateway",
        authorize=authorize,
        respond=error_formats.response_to,
        route_of=error_formats.dialect_of,
        metrics=metrics.GatewayMetrics(registry),
    )
    edge = HttpEdge(app, section, service, access, access_log=access_log)
    if not section.cors_origins:
        return edge
    # Any header, as clients add their own; cookies are not read, so pages cannot use those of a person.
    return CORSMiddleware(
        edge,
        allow_origins=section.cors_origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=_EXPOSED,
    )


def _check_root(root_path: str, app: FastAPI) -> None:
    """Check that no path of the API begins with the prefix: it would not be clear whether a proxy removed it.

    Raises:
        ConfigError: a path does.
    """
    paths = {*app.openapi()["paths"], DOCS_FILES, "/openapi.json"}
    if any(f"{path}/".startswith(f"{root_path}/") for path in paths):
        raise ConfigError("gateway.root_path", got=root_path, allowed="a prefix that no path of the API has")
