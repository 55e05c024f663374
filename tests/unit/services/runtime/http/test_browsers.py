"""What the edge refuses of browsers, over real HTTP: cross-site requests, foreign origins, unknown hosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config.http import HttpSection
from fairlead.config.infrastructure import KeysSection
from services.runtime.access.control import AccessControl
from services.runtime.http.browsers import LOOPBACK_HOSTS, BrowserGuard
from services.runtime.http.cookies import SessionCookie
from services.runtime.http.edge import HttpEdge, HttpService
from services.runtime.http.failures import error_content, failure_of
from services.runtime.http.server import HttpServer
from tests.gateway_world import ask

ORIGIN = "https://feedback.example.com"
OWN = {"origin": ORIGIN}
COOKIE = SessionCookie("session", secure=True)


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """Yield the address of a server that answers every request it accepts with the session it read."""
    app = FastAPI()
    app.add_api_route("/notes", lambda: None, methods=["GET", "POST", "PUT", "DELETE"])
    app.add_api_route("/healthz", lambda: None)
    seen: dict[str, str | None] = {}

    async def authorize(_caller, _call, scope) -> None:
        seen["session"] = COOKIE.read(scope["headers"])

    @app.middleware("http")
    async def show(request, call_next):
        return JSONResponse(seen)

    def respond(error: Exception, path: str, request_id: str) -> JSONResponse:
        failure = failure_of(error, log_name="test", path=path)
        return JSONResponse(error_content(failure, request_id), failure.status, failure.headers)

    registry = CollectorRegistry()
    service = HttpService(
        name="feedback",
        authorize=authorize,
        respond=respond,
        route_of=lambda _: "all",
        metrics=metrics.GatewayMetrics(registry),
        browsers=BrowserGuard(origin=ORIGIN, hosts=LOOPBACK_HOSTS, setting="feedback.origin"),
    )
    access = AccessControl(KeysSection(), access_metrics=metrics.AccessMetrics(registry))
    async with HttpServer(HttpSection(), name="feedback", drain_seconds=1) as server:
        serving = asyncio.create_task(server.serve(HttpEdge(app, HttpSection(), service, access)))
        yield server.address
        server.stop()
        await serving


def own_host(address: str) -> str:
    return f"http://{address}"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "none", "origin": "null"}, 200),
        ({"sec-fetch-site": "same-site"} | OWN, 403),
        ({"sec-fetch-site": "cross-site", "origin": "https://evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "something-new"}, 403),
        (OWN, 200),
        ({"origin": "http://feedback.example.com"}, 403),  # not the same scheme
        ({"origin": "HTTPS://FEEDBACK.example.com"}, 200),
        ({"origin": "https://feedback.example.com.evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
async def test_requests_of_foreign_pages_change_nothing(
    address: str, headers: Mapping[str, str], status: int
) -> None:
    for method in ("POST", "PUT", "DELETE"):
        answer = await asyncio.to_thread(ask, address, method, "/notes", None, headers)
        assert answer.status == status, (method, headers)
        if status == 403:
            assert "feedback.origin" in answer.error["message"]
    assert (await asyncio.to_thread(ask, address, "GET", "/notes", None, headers)).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("feedback.example.com", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("localhost.", 403),
        ("", 403),
    ],
)
async def test_requests_for_unknown_hosts_are_refused(address: str, host: str, status: int) -> None:
    for method in ("GET", "POST"):
        found = {"host": host, "origin": f"http://{host}"}
        answer = await asyncio.to_thread(ask, address, method, "/notes", None, found)
        assert answer.status == status, (method, host)
    # The probes of a cluster use the address of the pod.
    assert (await asyncio.to_thread(ask, address, "GET", "/healthz", None, {"host": host})).status == 200


async def test_own_address_is_an_own_page(address: str) -> None:
    headers = {"host": address, "origin": own_host(address)}
    assert (await asyncio.to_thread(ask, address, "POST", "/notes", None, headers)).status == 200


async def test_session_is_read_from_its_cookie_only(address: str) -> None:
    for cookie, found in (
        ("__Host-session=abc", "abc"),
        ('a=1; __Host-session="abc" ; b=2', "abc"),
        ("session=abc; __Host-sessions=x; __Host-session", None),
        ("", None),
    ):
        answer = await asyncio.to_thread(ask, address, "GET", "/notes", None, {"cookie": cookie})
        assert answer.json == {"session": found}, cookie


def test_cookie_of_a_session_is_hidden_from_scripts_and_other_sites() -> None:
    assert COOKIE.set("abc", max_age_seconds=60) == (
        "__Host-session=abc; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure"
    )
    plain = SessionCookie("session", secure=False)
    assert plain.delete() == "session=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax"
