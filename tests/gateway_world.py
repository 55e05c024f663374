"""A gateway in this process, on a real port, in front of real services, for the tests of its dialects.

Requests are sent with http.client in a thread, exactly as a test writes them.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config import RunConfig, load
from fairlead.config.base import ServerSection
from fairlead.config.infrastructure import ObserveSection
from fairlead.config.serving import PolicySection
from fairlead.nn.loading import load_tokenizer
from services.gateway.app import make_app
from services.gateway.backend import Backend
from services.gateway.collection import collector_of
from services.gateway.exchange_log import ExchangeLog
from services.policy.requests import encode
from services.policy.servicer import SERVICE_NAME, PolicyServicer, wire_limits
from services.runtime.access.control import AccessControl
from services.runtime.http.server import HttpServer
from services.runtime.server import ModelServer
from tests.unit.services.policy.policy_world import model_without_end, running
from tests.unit.services.reward.reward_world import reward_service


@dataclass
class HttpResponse:
    """One HTTP response."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


@dataclass
class Gateway:
    """A running gateway, and methods to send requests to it."""

    address: str
    server: HttpServer
    registry: CollectorRegistry
    tls: ssl.SSLContext | None = None
    """The client's side of TLS, if the gateway uses it."""

    async def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> HttpResponse:
        return await asyncio.to_thread(ask, self.address, method, path, body, headers, tls=self.tls)

    async def post(self, path: str, body: object, **headers: str) -> HttpResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.ask("POST", path, body, {"content-type": "application/json"} | named)

    async def get(self, path: str, **headers: str) -> HttpResponse:
        return await self.ask(
            "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    def count(self, **labels: str) -> float:
        return self.registry.get_sample_value("fairlead_gateway_requests_total", labels) or 0.0


def ask(
    address: str,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    *,
    tls: ssl.SSLContext | None = None,
) -> HttpResponse:
    """Send one request on a new connection. A body other than bytes is sent as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    if tls is None:
        connection = http.client.HTTPConnection(address, timeout=30)
    else:
        connection = http.client.HTTPSConnection(address, timeout=30, context=tls)
    try:
        connection.request(method, path, data, dict(headers or {}))
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return HttpResponse(response.status, found, response.read())
    finally:
        connection.close()


@asynccontextmanager
async def reward_server(folder: Path, *, calibration_temperature: float = 0.0) -> AsyncIterator[str]:
    """Run the reward service with a model in this event loop; yield its address."""
    async with reward_service(folder, calibration_temperature=calibration_temperature) as world:
        yield world.address


@dataclass
class RunningPolicy:
    """A policy service in this process."""

    address: str
    tokenizer: Any
    registry: CollectorRegistry
    drain: Callable[[], Awaitable[None]]
    """Stops the service as a signal does; running calls have a second."""

    @property
    def slots_used(self) -> float:
        return self.registry.get_sample_value("fairlead_policy_slots_used") or 0.0


@asynccontextmanager
async def policy_server(
    folder: Path, *, chat_template: str | None = None, before_step: Callable[[], None] | None = None
) -> AsyncIterator[RunningPolicy]:
    """Run the policy service in this event loop, with a model that never ends an answer.

    Args:
        folder: where the model is written.
        chat_template: of the tokenizer.
        before_step: called before each step of the model.
    """
    registry = CollectorRegistry()
    model = model_without_end(folder)
    if before_step is not None:
        model.register_forward_pre_hook(lambda *_: before_step())
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = chat_template
    section = PolicySection(bind="127.0.0.1:0", timeout_seconds=30)
    async with running(model, registry=registry) as engine:
        limits = ServerSection(drain_seconds=1)
        async with ModelServer(
            "policy", section, ObserveSection(), limits=limits, registry=registry
        ) as server:
            servicer = PolicyServicer(
                engine,
                section,
                encode=lambda prompt: encode(tokenizer, prompt),
                on_newer_weights=lambda _: None,
            )
            accepted = wire_limits(engine.info.model, max_text_bytes=section.max_text_bytes)
            address = await server.start(servicer.add_to, [SERVICE_NAME], accepted)
            server.set_ready(True)
            yield RunningPolicy(address, tokenizer, registry, server.drain)


@asynccontextmanager
async def gateway(
    *,
    reward: str = "",
    policy: str = "",
    sections: Mapping[str, object] | None = None,
    client: ssl.SSLContext | None = None,
    **settings: object,
) -> AsyncIterator[Gateway]:
    """Run a gateway in front of the services at these addresses; yield it when they are available.

    Args:
        reward: address of the reward service, if there is one.
        policy: address of the policy service, if there is one.
        sections: settings of other sections, by dotted key.
        client: TLS context of the client.
        settings: of the section `gateway`.
    """
    overrides: dict[str, object] = {f"gateway.{name}": value for name, value in settings.items()}
    for name, address in (("reward", reward), ("policy", policy)):
        if address:
            overrides[f"{name}.addresses"] = [address]
    config: RunConfig = load(overrides={**(sections or {})} | overrides)
    registry = CollectorRegistry()
    async with AsyncExitStack() as stack:
        limits = config.server_limits("gateway")
        server = await stack.enter_async_context(
            HttpServer(config.gateway, name="gateway", drain_seconds=limits.drain_seconds, tls=config.tls)
        )
        backend = await stack.enter_async_context(Backend(config, poll_seconds=0.05))
        access = AccessControl(config.keys, access_metrics=metrics.AccessMetrics(registry))
        stack.push_async_callback(access.close)
        log = ExchangeLog(config.gateway) if config.gateway.chat_log else None
        if log is not None:
            stack.callback(log.close)
        collector = collector_of(config, metrics.CollectMetrics(registry))
        if collector is not None:
            await stack.enter_async_context(collector)
        app = make_app(
            backend,
            config.gateway,
            ready=lambda: backend.available and not server.draining,
            access=access,
            access_log=config.observe.access_log,
            exchange_log=log,
            collector=collector,
            registry=registry,
        )
        serving = asyncio.create_task(server.serve(app))
        found = Gateway(server.address, server, registry, client)
        try:
            async with asyncio.timeout(20):
                polled = [each for each in (backend.reward, backend.policy) if each]
                while not all(each.available for each in polled):  # noqa: ASYNC110 - it notifies nobody
                    await asyncio.sleep(0.01)
            yield found
        finally:
            server.stop()
            await serving
