"""Bytes per second from the store to a verified copy, beside a plain copy of the same files over TCP."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.result import Result, Settings
from benchmarks.weights.child import Child, Origin, closing
from fairlead.transports.weights.base import Ancestor
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion

MEBIBYTES, SHARDS = 256, 2
AT_LEAST = 0.6


def publish(store: FilesystemWeightStore, version: WeightVersion, mebibytes: int) -> float:
    """Random bytes as a version. Returns the seconds from the last byte written to its being published."""
    draw = np.random.default_rng(version.update)
    with store.publish(version, parent=None, lineage=(Ancestor(version.incarnation, 0),)) as folder:
        for number in range(SHARDS):
            values = draw.integers(0, 256, (mebibytes << 20) // SHARDS, dtype=np.uint8)
            save_file({f"t{number}": values}, folder / f"model-{number}.safetensors")
        start = time.perf_counter()
    return time.perf_counter() - start


def run(settings: Settings) -> dict[str, Result]:
    """Rates of both, by the clock and by the CPU time of sender and receiver together."""
    mebibytes = 8 if settings.quick else MEBIBYTES
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        store = FilesystemWeightStore(root / "weights")
        published = publish(store, WeightVersion(1, 0), mebibytes)
        origin = Origin(store.root)
        replica = Child("benchmarks.weights.replica", origin.address, root / "cache", 0)
        sender = Child("benchmarks.weights.copier", "send", store.root / "1-0")
        receiver = Child("benchmarks.weights.copier", "receive", root / "copy")
        with closing([origin, replica, sender, receiver]):
            asyncio.run(origin.wait_ready())
            taken: dict[str, list[tuple[float, float]]] = {"ours": [], "copy": []}
            for turn in range(settings.rounds(5) + 1):
                cpu = origin.cpu_seconds() + replica.cpu_seconds()
                replica.ask("start")
                seconds = replica.ask("fetch")["seconds"]
                cpu = origin.cpu_seconds() + replica.cpu_seconds() - cpu
                copied_cpu = sender.cpu_seconds() + receiver.cpu_seconds()
                copied = receiver.ask(str(int(sender.ask("")["port"])))["seconds"]
                copied_cpu = sender.cpu_seconds() + receiver.cpu_seconds() - copied_cpu
                if turn or settings.quick:  # the first warms caches
                    taken["ours"].append((seconds, cpu))
                    taken["copy"].append((copied, copied_cpu))
    ours, copy = (
        [max(1e-3, statistics.median(column)) for column in zip(*taken[key], strict=True)]
        for key in ("ours", "copy")
    )
    what = "plain copy over TCP, not verified"
    size = mebibytes / 1024
    return {
        "weights_fetch": Result(size / ours[0], "GiB/s", size / copy[0], what, at_least=AT_LEAST),
        "weights_fetch_cpu": Result(size / ours[1], "GiB/CPU-s", size / copy[1], what),
        "weights_publish": Result(
            size / published, "GiB/s", size / copy[0], f"{what}; ours hashes and syncs"
        ),
    }
