"""Callers that stall, or that have no key, do not keep others from the gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from services.runtime.http import edge
from services.runtime.http.connections import Connection
from tests.gateway_world import Gateway, gateway, reward_server
from tests.unit.fairlead.rpc.rpc_world import Replica, serving
from tests.unit.services.runtime.keys_world import Keys

HEAD = b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n"


@contextlib.asynccontextmanager
async def opened(
    http: Gateway, *parts: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection and send parts of a request on it."""
    host, port = http.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        yield reader, writer
    finally:
        writer.close()


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"], ids=["nothing", "half a head"]
)
async def test_incomplete_head_closes_the_connection(monkeypatch, sent: bytes):
    monkeypatch.setattr(Connection, "head_seconds", 0.2)
    async with serving(Replica("one")) as reward, gateway(reward=reward) as http:
        async with opened(http, sent) as (reader, _), asyncio.timeout(20):
            assert await reader.read() == b""
        # A second head on a connection that was used before.
        whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        async with opened(http, whole, sent or b"G") as (reader, _), asyncio.timeout(20):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.count(b"HTTP/1.1") == 1


async def test_incomplete_body_is_refused(monkeypatch):
    monkeypatch.setattr(edge, "_BODY_IDLE_SECONDS", 0.2)
    async with serving(Replica("one")) as reward, gateway(reward=reward) as http:
        async with opened(http, HEAD + b"\r\n", b'{"prompt":') as (reader, _), asyncio.timeout(20):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 504")
        assert b"no part of the body was received for 0.2 s" in answer


async def test_callers_without_a_key_hold_no_place_and_get_no_invitation(reward_folder, keys: Keys):
    good = keys.add("good")
    settings = {"keys.file": str(keys.path)}
    async with (
        reward_server(reward_folder) as reward,
        gateway(reward=reward, max_in_flight=1, sections=settings) as http,
        opened(http, HEAD + b"\r\n", b"{"),
        opened(http, HEAD + b"Expect: 100-continue\r\n\r\n") as (reader, _),
    ):
        async with asyncio.timeout(20):
            assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        body = {"prompt": "w1", "responses": ["w2"]}
        answer = await http.post("/v1/rewards", body, authorization=f"Bearer {good}")
        assert answer.status == 200


async def test_callers_with_a_body_that_is_too_large_get_no_invitation():
    async with serving(Replica("one")) as reward, gateway(reward=reward, max_body_bytes=1_024) as http:
        for length, status in ((500, b"100"), (5_000, b"413")):
            head = HEAD.replace(b"500", str(length).encode()) + b"Expect: 100-continue\r\n\r\n"
            async with opened(http, head) as (reader, _), asyncio.timeout(20):
                assert (await reader.readline()).startswith(b"HTTP/1.1 " + status)
