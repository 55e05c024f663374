"""Bytes over a connection beside gRPC: to whoever was let in, and all of them; else gRPC brings them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from grpc import aio
from prometheus_client import CollectorRegistry

from fairlead import codec
from fairlead.config.infrastructure import WeightsSection
from fairlead.errors import ConfigError, CorruptWeights, Overloaded, Unavailable
from fairlead.transports.weights import direct_port
from fairlead.transports.weights.direct_port import DirectPort, open_direct_port
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion
from fairlead.types.weights import DirectOffer
from fairlead.v1 import weight_service_pb2 as pb
from fairlead.v1 import weight_service_pb2_grpc as pb_grpc
from tests.chaos.proxy import Proxy
from tests.unit.fairlead.transports.weights.test_grpc import same
from tests.unit.fairlead.transports.weights.test_relay import asked, boasts, fetch_request, size
from tests.unit.fairlead.transports.weights.weights_wire import (
    Node,
    listening,
    origin,
    publish_random,
    replica,
)
from tests.waiting import until

FIRST, SECOND = WeightVersion(1, 0), WeightVersion(1, 1)
ASIDE = "127.0.0.2"
"""Also this machine: who calls here for gRPC looks here for the direct port."""
linked = pytest.mark.skipif(sys.platform != "linux", reason="only Linux is at all of 127.0.0.0/8")


@pytest.fixture
def store(tmp_path: Path) -> FilesystemWeightStore:
    store = FilesystemWeightStore(tmp_path / "weights")
    publish_random(store, FIRST, mebibytes=20, shards=2)
    return store


@pytest.fixture
def shard(store: FilesystemWeightStore) -> bytes:
    return (store.root / "1-0" / "model-0.safetensors").read_bytes()


@asynccontextmanager
async def link(node: Node) -> AsyncIterator[tuple[str, Proxy]]:
    """An address of a sender, and the way to its direct port for those who call it there."""
    host, port = node.address.rsplit(":", 1)
    calls = Proxy(host, int(port), listens=(ASIDE, 0))
    beside = Proxy(host, node.direct_port, listens=(ASIDE, node.direct_port))
    await calls.start()
    await beside.start()
    try:
        yield calls.address, beside
    finally:
        beside.flow()
        await calls.cut()
        await beside.cut()


@asynccontextmanager
async def taken(node: Node, **fields: object) -> AsyncIterator[DirectOffer]:
    """An offer, for as long as the call lasts."""
    async with aio.insecure_channel(node.address) as channel:
        call = pb_grpc.WeightServiceStub(channel).FetchShard(fetch_request(direct=True, **fields))
        try:
            message = await call.read()
            assert not message.data
            yield codec.direct_offer_from_pb(message.direct, "127.0.0.1")
        finally:
            call.cancel()


async def read(offer: DirectOffer, *, shows: bytes | None = None) -> bytes:
    """What comes, to its end."""
    reader, writer = await asyncio.open_connection(offer.host, offer.port)
    try:
        writer.write(offer.ticket if shows is None else shows)
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_the_call_carries_the_offer_and_the_connection_all_bytes(
    store: FilesystemWeightStore, shard: bytes
) -> None:
    async with origin(store) as here:
        async with taken(here, offset_bytes=7, limit_bytes=9 << 20) as offer:
            assert await read(offer) == shard[7 : 7 + (9 << 20)]
        async with taken(here, offset_bytes=len(shard) - 3, limit_bytes=1 << 30) as offer:
            assert await read(offer) == shard[-3:]
        assert here.count("fairlead_weights_sent_bytes_total") == (9 << 20) + 3
        await until(lambda: here.count("fairlead_weights_relay_connections") == 0)


@linked
async def test_a_fetch_goes_over_it(store: FilesystemWeightStore, tmp_path: Path) -> None:
    async with origin(store) as here, link(here) as (address, beside):
        beside.bytes_per_second = 64 << 20
        async with replica(address, tmp_path / "cache") as fetcher:
            assert same(await fetcher.fetch(), store.root / "1-0")
            assert fetcher.node.fetched == (size(store), 0)
        assert beside.carried_bytes >= size(store)


@pytest.mark.parametrize(("sender", "receiver"), [(False, True), (True, False)])
async def test_it_takes_two_who_want_it(
    store: FilesystemWeightStore, tmp_path: Path, sender: bool, receiver: bool
) -> None:
    async with origin(store, direct=sender) as here:
        async with replica(here.address, tmp_path / "cache", direct=receiver) as fetcher:
            assert same(await fetcher.fetch(), store.root / "1-0")
    async with open_direct_port("127.0.0.1:0", WeightsSection(), encrypted=True) as port:
        assert port is None


@linked
async def test_where_it_cannot_be_made_bytes_come_over_grpc_and_it_is_said_once(
    store: FilesystemWeightStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with origin(store) as here, link(here) as (address, beside):
        await beside.cut()
        async with replica(address, tmp_path / "cache") as fetcher:
            with caplog.at_level(logging.WARNING):
                assert same(await fetcher.fetch(), store.root / "1-0")
                publish_random(store, SECOND)
                assert same(await fetcher.fetch(), store.root / "1-1")
        (told,) = [record.getMessage() for record in caplog.records if "over gRPC" in record.getMessage()]
        assert f"cannot connect to port {here.direct_port} of {ASIDE}: " in told
        assert (
            fetcher.node.count("fairlead_weights_source_failures_total", source="origin", reason="broken")
            == 0
        )


@linked
@pytest.mark.parametrize("fault", ["cut", "stall"])
async def test_one_that_breaks_is_followed_by_grpc_where_it_stood(
    store: FilesystemWeightStore, tmp_path: Path, fault: str
) -> None:
    async with origin(store) as here, link(here) as (address, beside):
        beside.bytes_per_second = 12 << 20
        async with replica(address, tmp_path / "cache") as fetcher:
            fetching = asyncio.create_task(fetcher.fetch())
            await until(lambda: fetcher.node.fetched[0] > 5 << 20)
            await beside.cut() if fault == "cut" else beside.stall()
            assert same(await fetching, store.root / "1-0")
            # What is fetched twice is a piece that had begun.
            assert fetcher.node.fetched[0] <= size(store) + (4 << 20)


@linked
async def test_latency_costs_time_alone(store: FilesystemWeightStore, tmp_path: Path) -> None:
    async with origin(store) as here, link(here) as (address, beside):
        beside.latency_seconds = 0.5
        async with replica(address, tmp_path / "cache") as fetcher:
            assert same(await fetcher.fetch(), store.root / "1-0")
            assert fetcher.node.fetched == (size(store), 0)


async def test_a_ticket_is_good_once_and_while_its_call_lasts(
    store: FilesystemWeightStore, shard: bytes
) -> None:
    async with origin(store) as here:
        async with taken(here, limit_bytes=1000) as offer, taken(here, limit_bytes=10) as other:
            for wrong in (bytes(32), b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 9, other.ticket[:31] + b"x"):
                assert await read(replace(offer, ticket=wrong[:32].ljust(32, b"\0"))) == b""
            assert await read(offer) == shard[:1000]
            assert await read(offer) == b""
            assert await read(other) == shard[:10]
        async with taken(here, limit_bytes=1000) as offer:
            pass
        await until(lambda: here.count("fairlead_weights_relay_connections") == 0)
        assert await read(offer) == b""


async def test_who_comes_without_a_ticket_is_in_nobodys_way(
    store: FilesystemWeightStore, tmp_path: Path
) -> None:
    async with origin(store) as here, contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            _, writer = await asyncio.open_connection("127.0.0.1", here.direct_port)
            stack.callback(writer.close)
        async with replica(here.address, tmp_path / "cache") as fetcher:
            # More than may wait: who comes now is turned away, and takes gRPC.
            assert same(await fetcher.fetch(), store.root / "1-0")


async def test_an_offer_that_nobody_takes_ends_its_call(
    store: FilesystemWeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_port, "_TICKET_SECONDS", 0.2)
    async with origin(store) as here:
        with pytest.raises(Unavailable, match=f"no receiver connected to port {here.direct_port}"):
            await asked(here, "FetchShard", fetch_request(direct=True))
        assert here.count("fairlead_weights_relay_connections") == 0


async def test_as_many_are_served_as_over_grpc(store: FilesystemWeightStore) -> None:
    async with origin(store, max_send_bytes_per_second=1 << 20) as here:
        async with taken(here, limit_bytes=4 << 20) as one, taken(here, limit_bytes=4 << 20):
            reading = asyncio.create_task(read(one))
            await until(lambda: here.count("fairlead_weights_sent_bytes_total") > 0)
            with pytest.raises(Overloaded, match="2 transfers are running"):
                await asked(here, "FetchShard", fetch_request(direct=True))
        await until(lambda: here.count("fairlead_weights_relay_connections") == 0)
        # The call is over, and so is what it let in.
        assert len(await reading) < 4 << 20


async def test_a_receiver_that_reads_nothing_is_left(store: FilesystemWeightStore) -> None:
    async with origin(store) as here, taken(here, limit_bytes=1 << 30) as offer:
        _, writer = await asyncio.open_connection(offer.host, offer.port, limit=1)
        writer.write(offer.ticket)
        await until(lambda: here.count("fairlead_weights_relay_connections") == 0)
        writer.close()


class Sends(pb_grpc.WeightServiceServicer):
    """A peer that offers a direct port and then does what it likes; over gRPC it has nothing."""

    def __init__(self, port: int) -> None:
        self.port = port

    def add_to(self, server: aio.Server) -> None:
        pb_grpc.add_WeightServiceServicer_to_server(self, server)

    async def FetchShard(self, request, context):
        if not request.direct:
            raise Unavailable("gone")
        yield pb.FetchShardResponse(direct=pb.DirectOffer(port=self.port, ticket=b"?"))
        await asyncio.Event().wait()


@pytest.mark.parametrize("port", [0, -1, 65_536, 2_000_000_000])
async def test_a_port_that_is_none_is_a_broken_source(
    store: FilesystemWeightStore, tmp_path: Path, port: int
) -> None:
    async with (
        origin(store) as here,
        listening(Sends(port), CollectorRegistry()) as liar,
        replica(here.address, tmp_path / "cache") as fetcher,
    ):
        await boasts(liar, here)
        assert same(await fetcher.fetch(), store.root / "1-0")
        assert fetcher.node.fetched == (size(store), 0)


@pytest.mark.parametrize("content", ["random", "nothing", "endless"])
async def test_a_peer_that_lies_over_it_is_found_out(
    store: FilesystemWeightStore, tmp_path: Path, content: str
) -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while content != "nothing":
                writer.write(b"lies" * (1 << 18) if content == "random" else b"e" * (1 << 20))
                await writer.drain()
        writer.close()

    async with (
        await asyncio.start_server(lie, "127.0.0.1", 0) as server,
        origin(store) as here,
        listening(Sends(server.sockets[0].getsockname()[1]), CollectorRegistry()) as liar,
        replica(here.address, tmp_path / "cache") as fetcher,
    ):
        await boasts(liar, here)
        assert same(await fetcher.fetch(), store.root / "1-0")
        assert fetcher.node.fetched[0] == size(store)
        lies = fetcher.node.count("fairlead_weights_verification_failures_total", source="peer")
        assert lies == (0 if content == "nothing" else 1)


async def test_a_fetch_that_is_given_up_leaves_no_thread_at_its_files(
    store: FilesystemWeightStore, tmp_path: Path
) -> None:
    async with origin(store, max_send_bytes_per_second=16 << 20) as here:
        async with replica(here.address, tmp_path / "cache") as fetcher:
            fetching = asyncio.create_task(fetcher.fetch())
            await until(lambda: fetcher.node.fetched[0] > 0)
            fetching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetching
            await until(lambda: here.count("fairlead_weights_relay_connections") == 0)
            got = fetcher.node.fetched
            await asyncio.sleep(0.3)
            assert fetcher.node.fetched == got
            # The next fetch goes on from what was verified.
        async with replica(here.address, tmp_path / "cache") as fetcher:
            assert same(await fetcher.fetch(), store.root / "1-0")


async def test_damage_of_the_origin_is_told_over_it_too(
    store: FilesystemWeightStore, tmp_path: Path, shard: bytes
) -> None:
    (store.root / "1-0" / "model-0.safetensors").write_bytes(shard[:-1] + bytes([shard[-1] ^ 1]))
    async with origin(store) as here, replica(here.address, tmp_path / "cache") as fetcher:
        with pytest.raises(CorruptWeights, match=r"model-0\.safetensors: the piece .* has the wrong digest"):
            await fetcher.fetch()


async def test_a_port_that_is_taken_is_named() -> None:
    async with DirectPort("127.0.0.1:0", WeightsSection()) as port:
        with pytest.raises(ConfigError, match=r"weights\.direct_port"):
            async with DirectPort("127.0.0.1:0", WeightsSection(direct_port=port.port)):
                raise AssertionError
