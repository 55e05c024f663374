"""Bytes per second from the store to a verified copy, against a plain copy of the same files over TCP."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
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
    """Publish random bytes as a version; return the seconds from the last byte written until it is
    published.
    """
    draw = np.random.default_rng(version.update)
    with store.publish(version, parent=None, lineage=(Ancestor(version.incarnation, 0),)) as folder:
        for number in range(SHARDS):
            values = draw.integers(0, 256, (mebibytes << 20) // SHARDS, dtype=np.uint8)
            save_file({f"t{number}": values}, folder / f"model-{number}.safetensors")
        start = time.perf_counter()
    return time.perf_counter() - start


def run(settings: Settings) -> dict[str, Result]:
    """Measure the rates of both, by wall-clock time and the CPU time of sender and receiver together."""
    mebibytes = 8 if settings.quick else MEBIBYTES
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        store = FilesystemWeightStore(root / "weights")
        published = publish(store, WeightVersion(1, 0), mebibytes)
        origin = Origin(store.root)
        replicas = {
            name: Child("benchmarks.weights.replica", origin.address, root / name, 0, *options)
            for name, options in {"ours": (), "over_grpc": ("--grpc",)}.items()
        }
        copy = _Copy("send", "receive", store.root / "1-0", root / "copy")
        messages = _Copy("send-messages", "receive-messages", store.root / "1-0", root / "messages")
        takes: dict[str, Callable[[], tuple[float, float]]]
        takes = {name: partial(_fetch, origin, replica) for name, replica in replicas.items()}
        takes |= {"copy": copy.take, "messages": messages.take}
        with closing([origin, *replicas.values(), *copy.processes, *messages.processes]):
            asyncio.run(origin.wait_ready())
            taken: dict[str, list[tuple[float, float]]] = defaultdict(list)
            for turn in range(settings.rounds(5) + 1):
                for who, take in takes.items():
                    # Flush what the previous one wrote before this one is timed.
                    os.sync()
                    found = take()
                    if turn or settings.quick:  # the first one warms caches
                        taken[who].append(found)
    size = mebibytes / 1024
    rates, by_cpu = (
        {
            name: size / max(1e-3, statistics.median(turn[part] for turn in turns))
            for name, turns in taken.items()
        }
        for part in (0, 1)
    )
    plain, grpc = "plain copy over TCP, not verified", "plain gRPC stream, not verified"
    return {
        "weights_fetch": Result(rates["ours"], "GiB/s", rates["copy"], plain, at_least=AT_LEAST),
        "weights_fetch_cpu": Result(by_cpu["ours"], "GiB/CPU-s", by_cpu["copy"], plain),
        "weights_fetch_over_grpc": Result(rates["over_grpc"], "GiB/s", rates["messages"], grpc),
        "weights_fetch_over_grpc_cpu": Result(by_cpu["over_grpc"], "GiB/CPU-s", by_cpu["messages"], grpc),
        "weights_grpc": Result(rates["messages"], "GiB/s", rates["copy"], plain),
        "weights_publish": Result(
            size / published, "GiB/s", rates["copy"], f"{plain}; ours hashes and syncs"
        ),
    }


def _fetch(origin: Origin, replica: Child) -> tuple[float, float]:
    """Return wall-clock seconds, and CPU seconds of both."""
    cpu = origin.cpu_seconds() + replica.cpu_seconds()
    replica.ask("start")
    seconds = replica.ask("fetch")["seconds"]
    return seconds, origin.cpu_seconds() + replica.cpu_seconds() - cpu


class _Copy:
    """Start a plain sender and receiver."""

    def __init__(self, send: str, receive: str, source: Path, target: Path) -> None:
        self._sender = Child("benchmarks.weights.copier", send, source)
        self._receiver = Child("benchmarks.weights.copier", receive, target)
        self.processes = (self._sender, self._receiver)

    def take(self) -> tuple[float, float]:
        """Return wall-clock and CPU seconds."""
        cpu = self._cpu_seconds()
        port = int(self._sender.ask("")["port"])
        seconds = self._receiver.ask(str(port))["seconds"]
        return seconds, self._cpu_seconds() - cpu

    def _cpu_seconds(self) -> float:
        return sum(process.cpu_seconds() for process in self.processes)
