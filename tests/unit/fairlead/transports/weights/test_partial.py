"""A shard that is being fetched, whose file is closed while a thread writes to it."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from fairlead.transports.weights import partial
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion
from tests.unit.fairlead.transports.weights.weights_wire import publish_random


async def test_cancelled_fetch_writes_to_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FilesystemWeightStore(tmp_path / "weights")
    publish_random(store, WeightVersion(1, 0), mebibytes=2, shards=1)
    manifest = store.latest()
    assert manifest is not None
    [shard] = manifest.shards
    data = (store.root / "1-0" / shard.name).read_bytes()
    fetched = partial.PartialShard(tmp_path / "shard", shard)
    begun, may_write, written = threading.Event(), threading.Event(), []

    def slow_pwrite(descriptor: int, block: memoryview, offset: int) -> int:
        begun.set()
        may_write.wait(30)
        written.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        return pwrite(descriptor, block, offset)

    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", slow_pwrite)
    writing = asyncio.create_task(fetched.write(data))
    await asyncio.to_thread(begun.wait, 30)
    writing.cancel()
    closing = threading.Thread(target=fetched.close)
    closing.start()
    closing.join(0.2)
    # A file that is opened now gets the number of the closed one, if it is closed.
    with (tmp_path / "other").open("wb") as other:
        may_write.set()
        closing.join(30)
        other.flush()
    assert not closing.is_alive()
    assert written == [str(tmp_path / "shard")]
    assert (tmp_path / "other").read_bytes() == b""
