"""The proxy in front of a real echo server: each fault has its effect on a connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.chaos.proxy import Proxy


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    made = Proxy(*server.sockets[0].getsockname()[:2])
    await made.start()
    yield made
    await made.cut()
    server.close()


async def connect(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def seconds_of_echo(
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], sent: bytes = b"x"
) -> float:
    reader, writer = streams
    began = time.monotonic()
    writer.write(sent)
    assert await asyncio.wait_for(reader.readexactly(len(sent)), 10) == sent
    return time.monotonic() - began


async def test_bytes_are_forwarded_in_order(proxy: Proxy):
    streams = await connect(proxy)
    await seconds_of_echo(streams, bytes(range(256)) * 4_000)
    streams[1].close()


async def test_latency_is_added_in_each_direction_until_healed(proxy: Proxy):
    streams = await connect(proxy)
    proxy.latency_seconds = 0.5
    assert await seconds_of_echo(streams) >= 1.0
    await proxy.heal()
    await seconds_of_echo(streams)
    assert await seconds_of_echo(streams) < 1.0
    streams[1].close()


async def test_low_bandwidth_delays_bytes(proxy: Proxy):
    streams = await connect(proxy)
    proxy.bytes_per_second = 10_000
    assert await seconds_of_echo(streams, b"x" * 3_000) >= 0.3
    streams[1].close()


async def test_stalled_bytes_arrive_after_flow(proxy: Proxy):
    reader, writer = await connect(proxy)
    proxy.stall()
    writer.write(b"late")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(4), 0.3)
    proxy.flow()
    assert await asyncio.wait_for(reader.readexactly(4), 10) == b"late"
    writer.close()


async def test_cut_resets_connections_and_refuses_new_ones_until_healed(proxy: Proxy):
    reader, writer = await connect(proxy)
    await seconds_of_echo((reader, writer))
    address = proxy.address
    await proxy.cut()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.readexactly(1), 10)
    with pytest.raises(OSError, match="refused|Connect call failed"):
        await connect(proxy)
    await proxy.heal()
    assert proxy.address == address
    again = await connect(proxy)
    await seconds_of_echo(again)
    for each in (writer, again[1]):
        each.close()
