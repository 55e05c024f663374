"""Weights over gRPC, with origin and replica as real servers: fetched versions equal published ones."""

from __future__ import annotations

import asyncio
import filecmp
import hashlib
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import ConfigError, CorruptWeights, NotFound, OutOfSpace, Unavailable
from fairlead.transports.weights import disk
from fairlead.transports.weights import manifest as manifests
from fairlead.transports.weights.cache import WeightCache
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion
from tests.unit.fairlead.rpc.rpc_world import dead_address
from tests.unit.fairlead.transports.weights.test_damage import rewrite
from tests.unit.fairlead.transports.weights.weights_wire import origin, publish_random, replica
from tests.unit.fairlead.transports.weights.weights_world import publish

pytestmark = pytest.mark.usefixtures("wire")
FIRST, SECOND = WeightVersion(1, 0), WeightVersion(1, 1)


@pytest.fixture
def store(tmp_path: Path) -> FilesystemWeightStore:
    return FilesystemWeightStore(tmp_path / "weights")


def same(one: Path, other: Path) -> bool:
    names = sorted(os.listdir(one))
    assert names == sorted(os.listdir(other))
    return filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


async def test_versions_arrive_unchanged_and_cache_stays_small(
    store: FilesystemWeightStore, tmp_path: Path
) -> None:
    async with origin(store) as here, replica(here.address, tmp_path / "cache") as fetcher:
        assert await fetcher.source.latest() is None
        for update in range(4):
            version = WeightVersion(1, update)
            publish_random(store, version)
            folder = await fetcher.fetch()
            assert folder == tmp_path / "cache" / str(version)
            assert same(folder, store.root / str(version))
            assert fetcher.cache.versions[-1] == version
        assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".lock", "1-2", "1-3"]
        total = 4 * sum(shard.size_bytes for shard in (await fetcher.source.latest()).shards)
        assert fetcher.node.fetched == (total, 0)
        assert here.count("fairlead_weights_sent_bytes_total") == total
        assert here.count("fairlead_weights_relay_connections") == 0


async def test_manifest_is_sent_once(store: FilesystemWeightStore, tmp_path: Path) -> None:
    publish(store, FIRST)
    async with origin(store) as here, replica(here.address, tmp_path / "cache") as fetcher:
        first = await fetcher.source.latest()
        assert first == store.latest()
        assert await fetcher.source.latest() is first
        publish(store, SECOND)
        assert (await fetcher.source.latest()).version == SECOND


async def test_partial_version_of_killed_process_is_verified_and_completed(
    store: FilesystemWeightStore, tmp_path: Path
) -> None:
    publish_random(store, FIRST, mebibytes=20, shards=1)
    manifest = store.latest()
    (shard,) = manifest.shards
    content = (store.root / "1-0" / shard.name).read_bytes()
    left = tmp_path / "cache" / ".partial-1-0"
    left.mkdir(parents=True)
    # Two complete pieces, the third damaged, the fourth incomplete.
    damaged = bytearray(content[: 15 << 20])
    damaged[9 << 20] ^= 1
    (left / shard.name).write_bytes(damaged)
    (left / "stray").write_bytes(b"x")
    async with origin(store) as here, replica(here.address, tmp_path / "cache") as fetcher:
        assert same(await fetcher.fetch(), store.root / "1-0")
        assert fetcher.node.fetched == (len(content) - (8 << 20), 0)


async def test_complete_version_of_earlier_process_is_verified_before_use(
    store: FilesystemWeightStore, tmp_path: Path
) -> None:
    publish_random(store, FIRST, mebibytes=12, shards=1)
    async with origin(store) as here:
        async with replica(here.address, tmp_path / "cache") as fetcher:
            folder = await fetcher.fetch()
        shard = folder / "model-0.safetensors"
        content = bytearray(shard.read_bytes())
        content[5 << 20] ^= 1
        shard.write_bytes(content)
        async with replica(here.address, tmp_path / "cache") as fetcher:
            assert fetcher.cache.versions == ()
            with pytest.raises(NotFound):
                fetcher.cache.open(FIRST, shard.name)
            assert same(await fetcher.fetch(), store.root / "1-0")
            assert fetcher.node.fetched == (len(content) - (4 << 20), 0)


async def test_damaged_shard_of_origin_is_named_and_not_kept(
    store: FilesystemWeightStore, tmp_path: Path
) -> None:
    publish_random(store, FIRST)
    path = store.root / "1-0" / "model-1.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x10
    path.write_bytes(content)
    async with origin(store) as here, replica(here.address, tmp_path / "cache") as fetcher:
        with pytest.raises(CorruptWeights, match=r"model-1\.safetensors: the piece .* has the wrong digest"):
            await fetcher.fetch()
        assert fetcher.cache.versions == ()
        assert not (tmp_path / "cache" / "1-0").exists()
        failures = fetcher.node.count("fairlead_weights_verification_failures_total", source="origin")
        assert failures == 2
        # Once repaired, the version is used, and only the damaged piece is fetched again.
        content[-3] ^= 0x10
        path.write_bytes(content)
        assert same(await fetcher.fetch(), store.root / "1-0")


async def test_truncated_shard_of_origin_is_reported(store: FilesystemWeightStore, tmp_path: Path) -> None:
    publish_random(store, FIRST)
    path = store.root / "1-0" / "model-1.safetensors"
    os.truncate(path, path.stat().st_size - 10)
    async with origin(store) as here:
        async with replica(here.address, tmp_path / "cache", give_up_seconds=1.0) as fetcher:
            with pytest.raises(Unavailable, match=r"model-1\.safetensors"):
                await fetcher.fetch()


async def test_damaged_manifest_is_reported(store: FilesystemWeightStore, tmp_path: Path) -> None:
    publish(store, FIRST)
    async with origin(store) as here, replica(here.address, tmp_path / "cache") as fetcher:
        assert (await fetcher.fetch()).name == "1-0"
        publish(store, SECOND)
        path = store.root / "1-1" / manifests.FILE_NAME
        path.write_bytes(path.read_bytes()[:-20])
        # The newest readable version is served, as on a shared volume.
        assert (await fetcher.source.latest()).version == FIRST


async def test_deleted_version_is_reported_and_current_one_fetched(
    store: FilesystemWeightStore, tmp_path: Path
) -> None:
    publish_random(store, FIRST)
    async with origin(store) as here, replica(here.address, tmp_path / "cache") as fetcher:
        old = await fetcher.source.latest()
        publish_random(store, SECOND)
        store.prune(keep=1)
        with pytest.raises(NotFound, match="the origin no longer has weights 1-0"):
            await fetcher.source.fetch(old)
        assert same(await fetcher.fetch(), store.root / "1-1")
        assert not list((tmp_path / "cache").glob(".partial*"))


async def test_unavailable_origin_is_reported_and_used_after_restart(
    store: FilesystemWeightStore, tmp_path: Path
) -> None:
    publish_random(store, FIRST, mebibytes=24, shards=1)
    async with replica(dead_address(), tmp_path / "cache") as fetcher:
        with pytest.raises(Unavailable):
            await fetcher.source.latest()
    # 6 MiB/s, so that the origin ends during the fetch; the next one listens at the same address.
    async with origin(store, max_send_bytes_per_second=6 << 20) as here:
        port = int(here.address.rpartition(":")[2])
        async with replica(here.address, tmp_path / "cache") as fetcher:
            task = asyncio.create_task(fetcher.fetch())
            async with asyncio.timeout(20):
                while fetcher.node.fetched[0] < 10 << 20:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await here.die()
            async with origin(store, port=port):
                assert same(await asyncio.wait_for(task, 30), store.root / "1-0")
            total = (store.root / "1-0" / "model-0.safetensors").stat().st_size
            # No verified byte is fetched twice: at most a piece, and what was in transit.
            assert fetcher.node.fetched[0] < total + (6 << 20)


async def test_cache_belongs_to_one_process(tmp_path: Path) -> None:
    with WeightCache(tmp_path / "cache", keep=2):
        with pytest.raises(ConfigError, match=r"weights\.cache: .*another process uses"):
            WeightCache(tmp_path / "cache", keep=2).__enter__()
    with WeightCache(tmp_path / "cache", keep=2):
        pass


async def test_version_that_does_not_fit_is_refused_before_fetching(
    store: FilesystemWeightStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_random(store, FIRST)
    free = disk.shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: free)
    async with origin(store) as here, replica(here.address, tmp_path / "cache") as fetcher:
        expected = r"weights 1-0 needs \d+ bytes in .*cache, but its disk has only 1000 free"
        with pytest.raises(OutOfSpace, match=expected):
            await fetcher.fetch()
        assert fetcher.node.fetched == (0, 0)


@pytest.mark.parametrize("damaged", [False, True])
async def test_sha256_pieces_of_first_release_are_verified(
    store: FilesystemWeightStore, tmp_path: Path, damaged: bool
) -> None:
    publish_random(store, FIRST, shards=1)
    path = store.root / "1-0" / "model-0.safetensors"
    content = path.read_bytes()
    pieces = [content[begin : begin + (4 << 20)] for begin in range(0, len(content), 4 << 20)]

    def use_sha256(body: dict[str, Any]) -> None:
        body["schema"] = 1
        body["shards"][0]["pieces"] = [hashlib.sha256(piece).hexdigest() for piece in pieces]
        del body["shards"][0]["piece_hash"]

    rewrite(store, use_sha256)
    if damaged:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    async with origin(store) as here, replica(here.address, tmp_path / "cache") as fetcher:
        with pytest.raises(CorruptWeights) if damaged else nullcontext():
            assert (await fetcher.fetch() / path.name).read_bytes() == content
