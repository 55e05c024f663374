"""Replicas relay verified bytes; sources that die, hang or send wrong bytes are replaced."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from grpc import aio
from prometheus_client import CollectorRegistry

from fairlead import codec
from fairlead.errors import InvalidInput, NotFound, NotOffered, Overloaded, Unavailable
from fairlead.rpc.replicas import Replicas
from fairlead.rpc.retry import RetryPolicy
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion
from fairlead.v1 import weight_service_pb2 as pb
from fairlead.v1 import weight_service_pb2_grpc as pb_grpc
from tests.unit.fairlead.transports.weights.test_grpc import same
from tests.unit.fairlead.transports.weights.weights_wire import (
    CHUNK_BYTES,
    Fetcher,
    Node,
    listening,
    origin,
    publish_random,
    replica,
)
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("wire")
FIRST = WeightVersion(1, 0)


@pytest.fixture
def store(tmp_path: Path) -> FilesystemWeightStore:
    store = FilesystemWeightStore(tmp_path / "weights")
    publish_random(store, FIRST, mebibytes=24, shards=2)
    return store


def size(store: FilesystemWeightStore) -> int:
    return sum(shard.size_bytes for shard in store.latest().shards)


async def asked(node: Node, method: str, request):
    """Make one call without retries, as another program would."""
    replicas = Replicas(
        [node.address],
        pb_grpc.WeightServiceStub,
        service="weights",
        timeout_seconds=60,
        retry=RetryPolicy(max_attempts=1),
        health="liveness",
    )
    try:
        if method == "FetchShard":
            return b"".join([m.data async for m in replicas.stream(lambda s: s.FetchShard, request)])
        return await replicas.call(lambda stub: getattr(stub, method), request)
    finally:
        await replicas.close()


async def claim_to_hold_weights(corrupt: Node, here: Node) -> None:
    """Report to the origin that a fake replica holds the weights."""
    claimed = pb.WeightReplica(
        replica_id="x", relay_address=corrupt.address, versions=[codec.version_to_pb(FIRST)]
    )
    await asked(here, "GetLatestManifest", pb.GetLatestManifestRequest(replica=claimed))


def fetch_request(**fields) -> pb.FetchShardRequest:
    values = {"version": codec.version_to_pb(FIRST), "shard": "model-0.safetensors", "limit_bytes": 10}
    return pb.FetchShardRequest(**(values | fields))


async def test_only_one_of_many_fetches_from_the_origin(store: FilesystemWeightStore, tmp_path: Path) -> None:
    async with origin(store) as here, AsyncExitStack() as stack:
        fetchers: list[Fetcher] = [
            await stack.enter_async_context(replica(here.address, tmp_path / f"cache-{number}"))
            for number in range(5)
        ]
        for folder in await asyncio.gather(*(fetcher.fetch() for fetcher in fetchers)):
            assert same(folder, store.root / "1-0")
        assert here.count("fairlead_weights_sent_bytes_total") < 2 * size(store)
        assert sum(fetcher.node.fetched[1] for fetcher in fetchers) > 3 * size(store)
        # A later replica fetches everything from a peer.
        late = await stack.enter_async_context(replica(here.address, tmp_path / "late"))
        await asyncio.gather(*(fetcher.source.latest() for fetcher in fetchers))
        assert same(await late.fetch(), store.root / "1-0")
        assert late.node.fetched == (0, size(store))


async def test_replica_relays_while_fetching(store: FilesystemWeightStore, tmp_path: Path) -> None:
    async with (
        origin(store, max_send_bytes_per_second=12 << 20) as here,
        replica(here.address, tmp_path / "first") as first,
        replica(here.address, tmp_path / "second") as second,
    ):
        one = asyncio.create_task(first.fetch())
        await until(lambda: first.node.fetched[0] > 0)
        other = asyncio.create_task(second.fetch())
        await until(lambda: second.node.fetched[1] > 0)
        assert not one.done()
        for task in (one, other):
            assert same(await task, store.root / "1-0")
        assert second.node.fetched == (0, size(store))


async def test_dead_peer_is_replaced_and_fetch_continues(
    store: FilesystemWeightStore, tmp_path: Path
) -> None:
    async with (
        origin(store) as here,
        replica(here.address, tmp_path / "first", max_send_bytes_per_second=8 << 20) as first,
        replica(here.address, tmp_path / "second") as second,
    ):
        await first.fetch()
        await first.source.latest()
        task = asyncio.create_task(second.fetch())
        await until(lambda: second.node.fetched[1] > 9 << 20)
        await first.node.die()
        assert same(await task, store.root / "1-0")
        origin_bytes, peer_bytes = second.node.fetched
        assert origin_bytes > 0
        # At most one incomplete piece is fetched twice.
        assert size(store) <= origin_bytes + peer_bytes <= size(store) + (5 << 20)
        assert second.node.count("fairlead_weights_source_failures_total", source="peer", reason="broken")


async def test_corrupt_peer_is_detected_reported_and_replaced(
    store: FilesystemWeightStore, tmp_path: Path
) -> None:
    async with (
        origin(store) as here,
        replica(here.address, tmp_path / "corrupt") as corrupt,
        replica(here.address, tmp_path / "second") as second,
        replica(here.address, tmp_path / "third") as third,
    ):
        folder = await corrupt.fetch()
        await corrupt.source.latest()
        path = folder / "model-0.safetensors"
        content = bytearray(path.read_bytes())
        content[6 << 20] ^= 1  # in the second piece
        path.write_bytes(content)
        assert same(await second.fetch(), store.root / "1-0")
        assert second.node.fetched[0] == size(store) - (4 << 20)
        assert second.node.count("fairlead_weights_verification_failures_total", source="peer") == 1
        await second.source.latest()
        # No replica is assigned the corrupt source again.
        assert same(await third.fetch(), store.root / "1-0")
        assert third.node.count("fairlead_weights_verification_failures_total", source="peer") == 0


async def test_hanging_peer_is_replaced(store: FilesystemWeightStore, tmp_path: Path) -> None:
    class Hangs(pb_grpc.WeightServiceServicer):
        def add_to(self, server: aio.Server) -> None:
            pb_grpc.add_WeightServiceServicer_to_server(self, server)

        async def FetchShard(self, request, context):
            shard = store.root / "1-0" / request.shard
            yield pb.FetchShardResponse(data=shard.read_bytes()[request.offset_bytes :][: 5 << 20])
            await asyncio.Event().wait()

    async with (
        origin(store) as here,
        listening(Hangs(), CollectorRegistry()) as hanging,
        replica(here.address, tmp_path / "cache", stall_seconds=2.0) as fetcher,
    ):
        await claim_to_hold_weights(hanging, here)
        assert same(await fetcher.fetch(), store.root / "1-0")
        assert fetcher.node.fetched == (size(store) - (4 << 20), 5 << 20)


async def test_sender_reports_invalid_requests(store: FilesystemWeightStore, tmp_path: Path) -> None:
    async with origin(store) as here, replica(here.address, tmp_path / "cache") as fetcher:
        await fetcher.fetch()
        content = (store.root / "1-0" / "model-0.safetensors").read_bytes()
        for node in (here, fetcher.node):
            assert await asked(node, "FetchShard", fetch_request(offset_bytes=7)) == content[7:17]
            assert await asked(node, "FetchShard", fetch_request(offset_bytes=len(content))) == b""
            assert (
                await asked(node, "FetchShard", fetch_request(offset_bytes=len(content) - 3)) == content[-3:]
            )
            for fields, field in (
                ({"limit_bytes": 0}, "limit_bytes"),
                ({"offset_bytes": -1}, "offset_bytes"),
                ({"offset_bytes": len(content) + 1}, "offset_bytes"),
            ):
                with pytest.raises(InvalidInput) as caught:
                    await asked(node, "FetchShard", fetch_request(**fields))
                assert caught.value.field == field
            for shard in ("model-9.safetensors", "manifest.json", "../latest", "", "/etc/passwd"):
                with pytest.raises(NotFound, match="have no shard"):
                    await asked(node, "FetchShard", fetch_request(shard=shard))
            with pytest.raises(NotFound, match="weights 9-9 are not in .*; versions in it: 1-0"):
                await asked(
                    node, "FetchShard", fetch_request(version=codec.version_to_pb(WeightVersion(9, 9)))
                )
        for method in ("GetLatestManifest", "ListWeightVersions", "FindWeightSource"):
            with pytest.raises(NotOffered, match="send the call to the weights service"):
                await asked(fetcher.node, method, getattr(pb, f"{method}Request")())
        listed = await asked(here, "ListWeightVersions", pb.ListWeightVersionsRequest())
        assert [codec.version_from_pb(version) for version in listed.versions] == [FIRST]


async def test_sender_limits_transfers(store: FilesystemWeightStore) -> None:
    # So slow that the first transfer is running until the second one begins, however busy the machine is.
    async with origin(store, max_send_bytes_per_second=CHUNK_BYTES) as here:
        request = fetch_request(limit_bytes=4 << 20)
        running = [asyncio.create_task(asked(here, "FetchShard", request)) for _ in range(2)]
        await until(
            lambda: (
                here.count("fairlead_weights_relay_connections") == 2 or any(task.done() for task in running)
            )
        )
        assert [task.result() for task in running if task.done()] == []
        with pytest.raises(Overloaded, match="2 transfers are running"):
            await asked(here, "FetchShard", request)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await until(lambda: here.count("fairlead_weights_relay_connections") == 0)


async def test_shard_truncated_while_sending_ends_the_stream(store: FilesystemWeightStore) -> None:
    path = store.root / "1-0" / "model-0.safetensors"
    async with origin(store) as here:
        request = fetch_request(limit_bytes=64 << 20)
        assert len(await asked(here, "FetchShard", request)) == path.stat().st_size
        os.truncate(path, 100)
        assert len(await asked(here, "FetchShard", fetch_request(limit_bytes=100))) == 100
        with pytest.raises((Unavailable, InvalidInput)):
            await asked(here, "FetchShard", fetch_request(offset_bytes=200))
