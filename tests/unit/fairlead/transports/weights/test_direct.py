"""Direct connections: only ticket holders get bytes, and get all of them; gRPC is the fallback."""

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
from tests.unit.fairlead.transports.weights.test_relay import (
    asked,
    claim_to_hold_weights,
    fetch_request,
    size,
)
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
"""Another address of this machine: a receiver that calls it over gRPC connects to its direct port, too."""
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
    """Yield an address of a sender, and the proxy to its direct port for receivers that use this address."""
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
async def offered(node: Node, **fields: object) -> AsyncIterator[DirectOffer]:
    """Yield an offer; its call is cancelled at the end of the block."""
    async with aio.insecure_channel(node.address) as channel:
        call = pb_grpc.WeightServiceStub(channel).FetchShard(fetch_request(direct=True, **fields))
        try:
            message = await call.read()
            assert not message.data
            yield codec.direct_offer_from_pb(message.direct, "127.0.0.1")
        finally:
            call.cancel()


async def read(offer: DirectOffer, *, ticket: bytes | None = None) -> bytes:
    """Return all bytes that arrive on the connection."""
    reader, writer = await asyncio.open_connection(offer.host, offer.port)
    try:
        writer.write(offer.ticket if ticket is None else ticket)
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_connection_delivers_exactly_the_requested_bytes(
    store: FilesystemWeightStore, shard: bytes
) -> None:
    async with origin(store) as here:
        async with offered(here, offset_bytes=7, limit_bytes=9 << 20) as offer:
            assert await read(offer) == shard[7 : 7 + (9 << 20)]
        async with offered(here, offset_bytes=len(shard) - 3, limit_bytes=1 << 30) as offer:
            assert await read(offer) == shard[-3:]
        assert here.count("fairlead_weights_sent_bytes_total") == (9 << 20) + 3
        await until(lambda: here.count("fairlead_weights_relay_connections") == 0)


@linked
async def test_fetch_uses_direct_connection(store: FilesystemWeightStore, tmp_path: Path) -> None:
    async with origin(store) as here, link(here) as (address, beside):
        beside.bytes_per_second = 64 << 20
        async with replica(address, tmp_path / "cache") as fetcher:
            assert same(await fetcher.fetch(), store.root / "1-0")
            assert fetcher.node.fetched == (size(store), 0)
        assert beside.carried_bytes >= size(store)


@pytest.mark.parametrize(("sender", "receiver"), [(False, True), (True, False)])
async def test_direct_needs_both_sides(
    store: FilesystemWeightStore, tmp_path: Path, sender: bool, receiver: bool
) -> None:
    async with origin(store, direct=sender) as here:
        async with replica(here.address, tmp_path / "cache", direct=receiver) as fetcher:
            assert same(await fetcher.fetch(), store.root / "1-0")
    async with open_direct_port("127.0.0.1:0", WeightsSection(), encrypted=True) as port:
        assert port is None


@linked
async def test_unreachable_port_falls_back_to_grpc_and_is_logged_once(
    store: FilesystemWeightStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with origin(store) as here, link(here) as (address, beside):
        await beside.cut()
        async with replica(address, tmp_path / "cache") as fetcher:
            with caplog.at_level(logging.WARNING):
                assert same(await fetcher.fetch(), store.root / "1-0")
                publish_random(store, SECOND)
                assert same(await fetcher.fetch(), store.root / "1-1")
        (warning,) = [record.getMessage() for record in caplog.records if "over gRPC" in record.getMessage()]
        assert f"cannot connect to port {here.direct_port} of {ASIDE}: " in warning
        assert (
            fetcher.node.count("fairlead_weights_source_failures_total", source="origin", reason="broken")
            == 0
        )


@linked
@pytest.mark.parametrize("fault", ["cut", "stall"])
async def test_broken_connection_continues_over_grpc(
    store: FilesystemWeightStore, tmp_path: Path, fault: str
) -> None:
    async with origin(store) as here, link(here) as (address, beside):
        beside.bytes_per_second = 12 << 20
        stall_seconds = 2.0 if fault == "stall" else 60.0
        async with replica(address, tmp_path / "cache", stall_seconds=stall_seconds) as fetcher:
            fetching = asyncio.create_task(fetcher.fetch())
            await until(lambda: fetcher.node.fetched[0] > 5 << 20)
            await beside.cut() if fault == "cut" else beside.stall()
            assert same(await fetching, store.root / "1-0")
            # At most one incomplete piece is fetched twice.
            assert fetcher.node.fetched[0] <= size(store) + (4 << 20)


@linked
async def test_latency_only_delays(store: FilesystemWeightStore, tmp_path: Path) -> None:
    async with origin(store) as here, link(here) as (address, beside):
        beside.latency_seconds = 0.5
        async with replica(address, tmp_path / "cache") as fetcher:
            assert same(await fetcher.fetch(), store.root / "1-0")
            assert fetcher.node.fetched == (size(store), 0)


async def test_ticket_is_valid_once_and_during_its_call(store: FilesystemWeightStore, shard: bytes) -> None:
    async with origin(store) as here:
        async with offered(here, limit_bytes=1000) as offer, offered(here, limit_bytes=10) as other:
            for wrong in (bytes(32), b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 9, other.ticket[:31] + b"x"):
                assert await read(replace(offer, ticket=wrong[:32].ljust(32, b"\0"))) == b""
            assert await read(offer) == shard[:1000]
            assert await read(offer) == b""
            assert await read(other) == shard[:10]
        async with offered(here, limit_bytes=1000) as offer:
            pass
        await until(lambda: here.count("fairlead_weights_relay_connections") == 0)
        assert await read(offer) == b""


async def test_connections_without_ticket_do_not_block_others(
    store: FilesystemWeightStore, tmp_path: Path
) -> None:
    async with origin(store) as here, contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            _, writer = await asyncio.open_connection("127.0.0.1", here.direct_port)
            stack.callback(writer.close)
        async with replica(here.address, tmp_path / "cache") as fetcher:
            # The limit is exceeded: a new connection is refused, and the receiver uses gRPC.
            assert same(await fetcher.fetch(), store.root / "1-0")


async def test_unused_offer_ends_its_call(
    store: FilesystemWeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_port, "_TICKET_SECONDS", 0.2)
    async with origin(store) as here:
        with pytest.raises(Unavailable, match=f"no receiver connected to port {here.direct_port}"):
            await asked(here, "FetchShard", fetch_request(direct=True))
        assert here.count("fairlead_weights_relay_connections") == 0


async def test_direct_transfers_are_limited_like_grpc(store: FilesystemWeightStore) -> None:
    async with origin(store, max_send_bytes_per_second=1 << 20) as here:
        async with offered(here, limit_bytes=4 << 20) as one, offered(here, limit_bytes=4 << 20):
            reading = asyncio.create_task(read(one))
            await until(lambda: here.count("fairlead_weights_sent_bytes_total") > 0)
            with pytest.raises(Overloaded, match="2 transfers are running"):
                await asked(here, "FetchShard", fetch_request(direct=True))
        await until(lambda: here.count("fairlead_weights_relay_connections") == 0)
        # With the call, its transfer has ended.
        assert len(await reading) < 4 << 20


async def test_receiver_that_reads_nothing_is_dropped(store: FilesystemWeightStore) -> None:
    async with origin(store, stall_seconds=1.0) as here, offered(here, limit_bytes=1 << 30) as offer:
        _, writer = await asyncio.open_connection(offer.host, offer.port, limit=1)
        writer.write(offer.ticket)
        await until(lambda: here.count("fairlead_weights_relay_connections") == 0)
        writer.close()


class OffersPort(pb_grpc.WeightServiceServicer):
    """A replica that offers a direct port of the test's choice; over gRPC it has nothing."""

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
async def test_invalid_port_is_a_broken_source(
    store: FilesystemWeightStore, tmp_path: Path, port: int
) -> None:
    async with (
        origin(store) as here,
        listening(OffersPort(port), CollectorRegistry()) as corrupt,
        replica(here.address, tmp_path / "cache") as fetcher,
    ):
        await claim_to_hold_weights(corrupt, here)
        assert same(await fetcher.fetch(), store.root / "1-0")
        assert fetcher.node.fetched == (size(store), 0)


@pytest.mark.parametrize("content", ["random", "nothing", "endless"])
async def test_corrupt_bytes_over_direct_connection_are_detected(
    store: FilesystemWeightStore, tmp_path: Path, content: str
) -> None:
    async def send_wrong_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while content != "nothing":
                writer.write(b"lies" * (1 << 18) if content == "random" else b"e" * (1 << 20))
                await writer.drain()
        writer.close()

    async with (
        await asyncio.start_server(send_wrong_bytes, "127.0.0.1", 0) as server,
        origin(store) as here,
        listening(OffersPort(server.sockets[0].getsockname()[1]), CollectorRegistry()) as corrupt,
        replica(here.address, tmp_path / "cache") as fetcher,
    ):
        await claim_to_hold_weights(corrupt, here)
        assert same(await fetcher.fetch(), store.root / "1-0")
        assert fetcher.node.fetched[0] == size(store)
        lies = fetcher.node.count("fairlead_weights_verification_failures_total", source="peer")
        assert lies == (0 if content == "nothing" else 1)


async def test_cancelled_fetch_leaves_no_thread(store: FilesystemWeightStore, tmp_path: Path) -> None:
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
            # The next fetch continues after the verified pieces.
        async with replica(here.address, tmp_path / "cache") as fetcher:
            assert same(await fetcher.fetch(), store.root / "1-0")


async def test_damage_of_the_origin_is_reported(
    store: FilesystemWeightStore, tmp_path: Path, shard: bytes
) -> None:
    (store.root / "1-0" / "model-0.safetensors").write_bytes(shard[:-1] + bytes([shard[-1] ^ 1]))
    async with origin(store) as here, replica(here.address, tmp_path / "cache") as fetcher:
        with pytest.raises(CorruptWeights, match=r"model-0\.safetensors: the piece .* has the wrong digest"):
            await fetcher.fetch()


async def test_port_in_use_is_named() -> None:
    async with DirectPort("127.0.0.1:0", WeightsSection()) as port:
        with pytest.raises(ConfigError, match=r"weights\.direct_port"):
            async with DirectPort("127.0.0.1:0", WeightsSection(direct_port=port.port)):
                raise AssertionError
