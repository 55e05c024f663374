"""The HTTP edge in front of a scripted service: limits, deadlines, cancellation, errors, access log."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import logging
import time

import pytest
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config.http import GatewaySection
from fairlead.config.infrastructure import KeysSection
from fairlead.errors import Overloaded, Unavailable
from fairlead.v1 import reward_service_pb2 as pb
from services.gateway import error_formats
from services.runtime.access.control import AccessControl
from services.runtime.http import connections
from services.runtime.http.edge import HttpEdge, HttpService
from services.runtime.http.server import HttpServer
from tests.gateway_world import Gateway, gateway
from tests.unit.fairlead.rpc.rpc_world import Replica, dead_address, serving
from tests.waiting import until

BODY = {"prompt": "w1", "responses": ["w2"]}


class ScriptedReward(Replica):
    """A reward service that records requests and behaves as a test specifies."""

    def __init__(self, behave=None, *, score: float = 1.0) -> None:
        super().__init__("judge-1", behave)
        self.requests: list[pb.ScoreRequest] = []
        self.cancelled = 0
        self.score = score

    async def Score(self, request, context):
        self.requests.append(request)
        try:
            response = await super().Score(request, context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        response.scores[:] = [self.score] * len(request.items)
        response.num_tokens[:] = [3] * len(request.items)
        return response


@contextlib.asynccontextmanager
async def world(reward: ScriptedReward, **settings):
    async with serving(reward) as address, gateway(reward=address, **settings) as http:
        yield http


async def raw(http: Gateway, *parts: bytes) -> bytes:
    """Send bytes unchanged and read until the connection closes."""
    host, port = http.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for part in parts:
        writer.write(part)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
    answer = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(20):
            while part := await reader.read(65_536):
                answer += part
    writer.close()
    return answer


async def test_request_id_is_passed_on_and_an_invalid_one_is_replaced():
    reward = ScriptedReward()
    async with world(reward) as http:
        answer = await http.post("/v1/rewards", BODY, x_request_id="order-66")
        assert (answer.headers["x-request-id"], reward.requests[-1].request_id) == ("order-66", "order-66")
        for bad in ("x" * 200, "a b", "ü"):
            answer = await http.ask(
                "POST", "/v1/rewards", BODY, {"x-request-id": bad.encode("latin-1").decode("latin-1")}
            )
            given = answer.headers["x-request-id"]
            assert given not in ("", bad)
            assert reward.requests[-1].request_id == given
        bulk = await http.post("/v1/rewards", BODY | {"priority": "bulk"})
        assert bulk.status == 200
        assert reward.requests[-1].priority == pb.SCORE_PRIORITY_BULK


async def test_body_above_the_limit_is_refused_while_it_is_received():
    reward = ScriptedReward()
    async with world(reward, max_body_bytes=2048) as http:
        answer = await http.post("/v1/rewards", {"responses": ["w" * 4000]})
        assert (answer.status, answer.error["type"]) == (413, "invalid_argument")
        assert answer.error["message"] == "body: got '4019 bytes or more', allowed: at most 2048 bytes"
        assert answer.headers["connection"] == "close"
        head = (
            b"POST /get_reward HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"400\r\n" + b"w" * 0x400 + b"\r\n"
        chunked = await raw(http, head, *[chunk] * 4, b"0\r\n\r\n")
        assert chunked.startswith(b"HTTP/1.1 413")
        bomb = gzip.compress(json.dumps({"responses": ["w" * 100_000]}).encode())
        assert len(bomb) < 2048
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        answer = await http.ask("POST", "/v1/rewards", bomb, headers)
        assert answer.status == 413
        twice = gzip.compress(b"{}") * 2
        for body, encoding in (
            (gzip.compress(b"{}")[:-9], "gzip"),
            (b"no", "deflate"),
            (b"{}", "br"),
            (twice, "gzip"),
        ):
            answer = await http.ask("POST", "/v1/rewards", body, headers | {"content-encoding": encoding})
            assert answer.status == 400
        fine = await http.ask("POST", "/v1/rewards", gzip.compress(json.dumps(BODY).encode()), headers)
        assert fine.status == 200
    assert len(reward.requests) == 1


async def test_overload_is_reported_with_the_services_retry_delay():
    async def full(_: int) -> None:
        raise Overloaded("the queue is full", retry_after_seconds=2.4)

    async with world(ScriptedReward(full), retry_attempts=1) as http:
        answer = await http.post("/v1/rewards", BODY)
        assert (answer.status, answer.error["type"]) == (429, "resource_exhausted")
        assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("3", "2400")
        assert answer.error["retry_after_seconds"] == pytest.approx(2.4)
        rlhf = await http.post("/get_reward", {"query": ["w1"]})
        assert (rlhf.status, list(rlhf.json), rlhf.headers["retry-after"]) == (429, ["detail"], "3")
        verl = await http.post("/classify", {"input": "w1"})
        assert (verl.status, verl.error["type"]) == (429, "rate_limit_error")


async def test_unavailable_service_gives_503_and_turns_readiness_off():
    async def loading(_: int) -> None:
        raise Unavailable("loading")

    async with world(ScriptedReward(loading), retry_attempts=1) as http:
        answer = await http.post("/v1/rewards", BODY)
        assert (answer.status, answer.error["type"], answer.headers["retry-after"]) == (
            503,
            "unavailable",
            "1",
        )
    reward = ScriptedReward()
    async with contextlib.AsyncExitStack() as stack:
        server = contextlib.AsyncExitStack()
        address = await server.enter_async_context(serving(reward))
        http = await stack.enter_async_context(gateway(reward=address))
        assert (await http.get("/readyz")).status == 200
        await server.aclose()
        async with asyncio.timeout(20):
            while (await http.get("/readyz")).status == 200:  # noqa: ASYNC110 - asked over HTTP
                await asyncio.sleep(0.02)
        assert (await http.get("/healthz")).status == 200
        assert (await http.get("/v2/health/ready")).status == 503
        assert (await http.get("/v2/models/reward/ready")).status == 503
        assert (await http.get("/v1/models")).json["data"] == []
    assert dead_address()


async def test_deadline_is_the_shorter_of_callers_and_gateways():
    release = asyncio.Event()

    async def wait(_: int) -> None:
        await release.wait()

    reward = ScriptedReward(wait)
    async with world(reward, timeout_seconds=30) as http:
        late = await http.post("/v1/rewards", BODY, x_request_timeout="1")
        assert (late.status, late.error["type"]) == (504, "deadline_exceeded")
        await until(lambda: reward.cancelled == 1)
        for bad in ("soon", "0", "-1", "nan", "inf"):
            answer = await http.post("/v1/rewards", BODY, x_request_timeout=bad)
            assert (answer.status, answer.error["field"]) == (400, "X-Request-Timeout")
            assert answer.error["request_id"] == answer.headers["x-request-id"]
        triton = {
            "inputs": [{"name": "sentences", "datatype": "BYTES", "shape": [1, 1], "data": ["w1"]}],
            "parameters": {"timeout": 200_000},
        }
        answer = await http.post("/v2/models/reward/infer", triton)
        assert (answer.status, list(answer.json)) == (504, ["error"])
        release.set()
    async with world(ScriptedReward(), timeout_seconds=0.3) as http:
        slow = await raw(http, b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert slow.startswith(b"HTTP/1.1 504")
        assert b"before the whole body was received" in slow


async def test_disconnect_cancels_the_call_to_the_service():
    async def wait(_: int) -> None:
        await asyncio.Event().wait()

    reward = ScriptedReward(wait)
    async with world(reward) as http:
        host, port = http.address.split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps(BODY).encode()
        writer.write(
            f"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        await until(lambda: len(reward.requests) == 1)
        writer.close()
        await writer.wait_closed()
        await until(lambda: reward.cancelled == 1)
        await until(lambda: http.count(dialect="fairlead", status="499") == 1)


async def test_requests_above_the_in_flight_limit_are_refused_but_probes_answer():
    release = asyncio.Event()

    async def wait(_: int) -> None:
        await release.wait()

    reward = ScriptedReward(wait)
    async with world(reward, max_in_flight=2) as http:
        held = [asyncio.create_task(http.post("/v1/rewards", BODY)) for _ in range(2)]
        await until(lambda: len(reward.requests) == 2)
        answer = await http.post("/v1/rewards", BODY)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert (await http.get("/healthz")).status == 200
        release.set()
        assert [(await one).status for one in held] == [200, 200]


async def test_internal_error_returns_an_id_and_no_internals(caplog):
    async def bug(_: int) -> None:
        raise RuntimeError("a secret of the service")

    async with world(ScriptedReward(bug)) as http:
        answer = await http.post("/v1/rewards", BODY)
        assert (answer.status, answer.error["type"]) == (500, "internal")
        assert "secret" not in answer.body.decode()
        assert "127.0.0.1" not in answer.body.decode(), "must not contain the address of the service"
    # A score that JSON cannot represent is a bug of the service that only the gateway detects.
    async with world(ScriptedReward(score=float("nan"))) as http:
        for path, body in (
            ("/v1/rewards", BODY),
            ("/v1/rewards:rank", BODY),
            ("/get_reward", {"query": ["w1"]}),
            ("/classify", {"input": "w1"}),
        ):
            answer = await http.post(path, body)
            assert answer.status == 500, path
            assert "Traceback" not in answer.body.decode()
            assert "in the gateway's log" in answer.body.decode()
    ids = [record for record in caplog.records if "internal error" in record.getMessage()]
    assert len(ids) >= 4


async def test_errors_have_the_format_of_their_dialect():
    async with world(ScriptedReward()) as http:
        nothing = await http.get("/nothing")
        assert (nothing.status, nothing.error["type"]) == (404, "not_found")
        method = await http.get("/v1/rewards")
        assert (method.status, method.error["type"], method.headers["allow"]) == (
            405,
            "method_not_allowed",
            "POST",
        )
        assert (await http.get("/v1/chat/completions")).error["type"] == "invalid_request_error"
        assert isinstance((await http.get("/v2/nothing")).json["error"], str)
        # Not a redirect to the host that the caller named.
        for path in ("/v1/rewards/", "/healthz/", "//evil.example/v1/models"):
            found = await http.ask("GET", path, headers={"host": "evil.example", "accept": "text/html"})
            assert (found.status, found.headers.get("location")) == (404, None), path
        chat = await http.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "w1"}]})
        assert (chat.status, chat.error["code"]) == (501, "unimplemented")
        for path in ("/healthz", "/readyz"):
            assert (await http.ask("HEAD", path)).status == 200
        broken = await raw(http, b"NO HTTP\r\n\r\n")
        assert broken.startswith(b"HTTP/1.1 400")
        big = await raw(http, b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000)
        assert big.startswith(b"HTTP/1.1 400") or not big, "the connection may be reset before it is read"
        assert (await http.post("/v1/rewards", BODY)).status == 200


@pytest.mark.parametrize("style", ["auto", "plain", "texts", "off"])
async def test_access_log_contains_texts_only_if_configured(caplog, style):
    caplog.set_level(logging.INFO)
    async with world(ScriptedReward(), sections={"observe.access_log": style}) as http:
        await http.post("/v1/rewards", {"prompt": "a private matter", "responses": ["w2"]})
        await http.post("/v1/rewards", {"prompt": "a private matter", "responses": [5]})
        await http.get("/healthz")
    lines = [vars(record) for record in caplog.records if record.name == "services.gateway.access"]
    assert [line["status"] for line in lines] == ([] if style == "off" else [200, 400])
    logged = json.dumps([{key: str(value) for key, value in vars(one).items()} for one in caplog.records])
    assert ("a private matter" in logged) == (style == "texts")


async def test_drain_finishes_requests_in_flight_and_refuses_new_ones():
    release = asyncio.Event()

    async def wait(_: int) -> None:
        await release.wait()

    reward = ScriptedReward(wait)
    async with world(reward) as http:
        held = asyncio.create_task(http.post("/v1/rewards", BODY))
        await until(lambda: len(reward.requests) == 1)
        http.server.stop()
        await until(lambda: http.server.draining)
        # It still answers for a moment, so that load balancers notice.
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(20):
                while (await http.get("/readyz")).status == 503:  # noqa: ASYNC110 - asked over HTTP
                    await asyncio.sleep(0.01)
        with pytest.raises(ConnectionError):
            await http.get("/readyz")
        release.set()
        answer = await held
        assert (answer.status, answer.headers["connection"]) == (200, "close")


def send_on(kept: http.client.HTTPConnection) -> http.client.HTTPResponse:
    """Send a request on a connection that stays open; return the response."""
    kept.request("POST", "/v1/rewards", json.dumps(BODY), {"content-type": "application/json"})
    response = kept.getresponse()
    response.read()
    return response


def call_until_closed(address: str, pause_seconds: float) -> list[int]:
    """Send requests on one connection until a response closes it; return their statuses."""
    kept = http.client.HTTPConnection(address, timeout=60)
    kept.connect()
    statuses = []
    with contextlib.closing(kept):
        while kept.sock:
            statuses.append(send_on(kept).status)
            time.sleep(pause_seconds)
    return statuses


async def test_callers_with_kept_connections_lose_no_request_in_a_drain(monkeypatch):
    monkeypatch.setattr(connections, "_IDLE_DRAIN_SECONDS", 30.0)
    reward = ScriptedReward()
    async with world(reward) as found:
        idle = http.client.HTTPConnection(found.address, timeout=60)
        assert (await asyncio.to_thread(send_on, idle)).status == 200
        pauses = (0, 0, 0, 0, 0.02, 0.05, 0.1, 0.2)
        callers = [
            asyncio.create_task(asyncio.to_thread(call_until_closed, found.address, pause_seconds))
            for pause_seconds in pauses
        ]
        await until(lambda: len(reward.requests) > 50)
        found.server.stop()
        with pytest.raises(ConnectionError):  # noqa: PT012
            while True:
                await found.get("/readyz")
        last = await asyncio.to_thread(send_on, idle)
        assert (last.status, last.getheader("connection"), idle.sock) == (200, "close", None)
        statuses = await asyncio.gather(*callers)
    assert all(set(each) == {200} for each in statuses)
    assert sum(map(len, statuses)) + 2 == len(reward.requests)


async def test_stream_that_the_drain_cuts_off_is_one_warning(caplog):
    async def endless(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0.05)

    registry = CollectorRegistry()
    access = AccessControl(KeysSection(), access_metrics=metrics.AccessMetrics(registry))

    async def everyone(*_: object) -> None:
        return None

    service = HttpService(
        name="gateway",
        authorize=everyone,
        respond=error_formats.response_to,
        route_of=error_formats.dialect_of,
        metrics=metrics.GatewayMetrics(registry),
    )
    edge = HttpEdge(endless, GatewaySection(), service, access)
    async with HttpServer(GatewaySection(), name="gateway", drain_seconds=1) as server:
        serving = asyncio.create_task(server.serve(edge))
        host, port = server.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await reader.readuntil(b"x")
        server.stop()
        await serving
        await until(lambda: "the drain ended before" in caplog.text)
        writer.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Traceback" not in caplog.text
    labels = {"dialect": "other", "status": "503"}
    await until(lambda: registry.get_sample_value("fairlead_gateway_requests_total", labels) == 1)
