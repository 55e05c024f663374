"""The app: every dialect's routes, and the page that describes them. Knows no server."""

from __future__ import annotations

from collections.abc import Callable

from fastapi_offline import FastAPIOffline
from prometheus_client import REGISTRY, CollectorRegistry
from starlette.types import ASGIApp

from fairlead import __version__, metrics
from fairlead.config.infrastructure import AccessLog
from fairlead.config.serving import GatewaySection
from services.gateway import failures, health
from services.gateway.backend import Backend
from services.gateway.dialects import (
    open_inference,
    openai_chat,
    openai_models,
    openrlhf,
    rewards,
    vllm,
)
from services.gateway.edge import HttpEdge
from services.gateway.exchange_log import ExchangeLog
from services.gateway.scopes import DOCS_FILES
from services.runtime.access import Access

_ABOUT = """The reward model as an API, in the dialects that clients already speak.

Scores are computed by the reward service, which packs the requests of all callers into common batches.
`X-Request-Id` names a request in the logs of every process that it passes; `X-Request-Timeout` is how many
seconds you wait for it: work that nobody waits for any more is not begun, and stops when you hang up.
"""


def make_app(
    backend: Backend,
    section: GatewaySection,
    *,
    ready: Callable[[], bool],
    access: Access,
    access_log: AccessLog = "auto",
    log: ExchangeLog | None = None,
    registry: CollectorRegistry = REGISTRY,
) -> ASGIApp:
    """Everything behind the port.

    Args:
        backend: what answers.
        section: limits.
        ready: what /readyz says.
        access: who may call.
        access_log: what of a request is logged.
        log: where exchanges of chat completions are kept, if they are.
        registry: what /metrics shows.
    """
    app = FastAPIOffline(
        title="Fairlead",
        version=__version__,
        description=_ABOUT,
        redoc_url=None,
        static_url=DOCS_FILES,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    failures.install(app)
    for dialect in (rewards, openrlhf, vllm, open_inference, openai_models):
        app.include_router(dialect.router(backend))
    app.include_router(openai_chat.router(backend, log=log, default_tokens=section.chat_max_tokens))
    app.include_router(health.router(ready=ready, registry=registry))
    return HttpEdge(app, section, metrics.GatewayMetrics(registry), access, access_log=access_log)
