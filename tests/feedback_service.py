"""A feedback service in this process, on a real port, with people who send requests as programs do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config import load
from services.feedback.__main__ import ensure_project
from services.feedback.app import make_app
from services.feedback.service import Service, needs_no_sign_in
from services.feedback.store import open_store
from services.feedback.store_threads import StoreThreads
from services.runtime.access.control import AccessControl
from services.runtime.http.cookies import SessionCookie
from services.runtime.http.server import HttpServer
from tests.gateway_world import HttpResponse, ask

API = "/v1/feedback"
_PAGES = ("/work", "/sign-in", "/sign-out", "/invitation", "/static", "/metrics", "/openapi", "/docs", "/v1")
"""Starts of paths that are not of the API, or already whole."""


@dataclass
class Caller:
    """Somebody who sends requests."""

    address: str
    headers: dict[str, str] = field(default_factory=dict)

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> HttpResponse:
        """Send a request to a path of the API, with or without its prefix, or to another path."""
        place = path if path == "/" or path.startswith(_PAGES) else API + path
        return await self.ask_at(method, place, body, **headers)

    async def ask_at(self, method: str, path: str, body: object = None, **headers: str) -> HttpResponse:
        """Send a request to a whole path."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            named.setdefault("content-type", "application/json")
        return await asyncio.to_thread(ask, self.address, method, path, body, self.headers | named)

    async def get(self, path: str, **headers: str) -> Any:
        answer = await self.ask("GET", path, **headers)
        assert answer.status == 200, answer.body
        return answer.json

    async def post(self, path: str, body: object = None, **headers: str) -> Any:
        answer = await self.ask("POST", path, body, **headers)
        assert answer.status in (200, 201), answer.body
        return answer.json

    async def next(self, **asked: object) -> Any:
        answer = await self.ask("POST", "/next", asked)
        return answer.json if answer.status == 200 else None


@dataclass
class Feedback:
    """A running service."""

    address: str
    service: Service
    registry: CollectorRegistry
    server: HttpServer

    @property
    def local(self) -> Caller:
        """A program on the machine itself, without a session."""
        return Caller(self.address)

    def key(self, key: str) -> Caller:
        return Caller(self.address, {"authorization": f"Bearer {key}"})

    async def signed_in(self, **body: object) -> Caller:
        """Return a person who has signed in with a handle or an invitation."""
        caller = Caller(self.address)
        answer = await caller.ask("POST", "/sessions", body)
        assert answer.status == 201, answer.body
        caller.headers["cookie"] = answer.headers["set-cookie"].partition(";")[0]
        return caller

    async def program(self, handle: str, kind: str = "simulated") -> Caller:
        return await self.signed_in(handle=handle, kind=kind)


@asynccontextmanager
async def feedback(
    folder: Path, *, sections: Mapping[str, object] | None = None, **settings: object
) -> AsyncIterator[Feedback]:
    """Run a service with a store in a folder.

    Args:
        folder: of the store.
        sections: settings of other sections, by dotted key.
        settings: of the section `feedback`; `project__overlap` is `feedback.project.overlap`.
    """
    overrides = {f"feedback.{name.replace('__', '.')}": value for name, value in settings.items()}
    config = load(overrides={"feedback.store": str(folder / "feedback.db"), **(sections or {})} | overrides)
    registry = CollectorRegistry()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            HttpServer(config.feedback, name="feedback", drain_seconds=5, tls=config.tls)
        )
        access = AccessControl(config.keys, access_metrics=metrics.AccessMetrics(registry))
        stack.push_async_callback(access.close)
        store = open_store(config.feedback_store)
        stack.callback(store.close)
        ensure_project(store, config.feedback)
        found = metrics.FeedbackMetrics(registry)
        threads = StoreThreads(found)
        stack.callback(threads.close)
        service = Service(
            store=store,
            threads=threads,
            metrics=found,
            section=config.feedback,
            cookie=SessionCookie("fairlead_feedback", secure=config.feedback.origin.startswith("https:")),
            is_open=needs_no_sign_in(config.feedback, server.address, requires_keys=access.requires_keys),
        )
        app = make_app(service, ready=lambda: not server.draining, access=access, registry=registry)
        serving = asyncio.create_task(server.serve(app))
        try:
            yield Feedback(server.address, service, registry, server)
        finally:
            server.stop()
            await serving


def task(number: int, *, k: int = 3, **fields: object) -> dict[str, object]:
    """Return a task of k answers, which come from a run that labelers must not see."""
    answers = [
        {"text": f"answer {number} {place}", "run": "secret-run", "weight_versions": [f"secret.{place}"]}
        for place in range(k)
    ]
    return {"prompt": f"question {number}", "responses": answers, **fields}


def ranks_by_text(shown: Mapping[str, Any]) -> dict[str, int]:
    """Rank the answers of a task by their text."""
    order = sorted(shown["answers"], key=lambda answer: answer["text"])
    return {answer["id"]: place for place, answer in enumerate(order, start=1)}
