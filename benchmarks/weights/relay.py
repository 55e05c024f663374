"""One version to one replica and to eight, with every sender limited to the same bandwidth."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.result import Result, Settings
from benchmarks.weights.child import Child, Origin, closing
from benchmarks.weights.path import publish
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion

REPLICAS = 8
MEBIBYTES, MEBIBYTES_PER_SECOND = 64, 8
"""Low enough that eight senders together do not saturate the CPUs."""
AT_MOST = 2.0


def run(settings: Settings) -> dict[str, Result]:
    """Measure the seconds until the last replica has verified everything, against a single replica."""
    mebibytes = 8 if settings.quick else MEBIBYTES
    rate = (200 if settings.quick else MEBIBYTES_PER_SECOND) << 20
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        store = FilesystemWeightStore(root / "weights")
        origin = Origin(store.root, max_send_bytes_per_second=rate)
        replicas = [
            Child("benchmarks.weights.replica", origin.address, root / f"cache-{number}", rate)
            for number in range(REPLICAS)
        ]
        with closing([origin, *replicas]):
            asyncio.run(origin.wait_ready())
            for replica in replicas:
                replica.ask("start")
            one, all_of_them = [], []
            for turn in range(settings.rounds(3)):
                publish(store, WeightVersion(1, 2 * turn), mebibytes)
                one.append(_together(replicas[:1]))
                publish(store, WeightVersion(1, 2 * turn + 1), mebibytes)
                all_of_them.append(_together(replicas))
    return {
        "weights_relay_8": Result(
            statistics.median(all_of_them),
            "s",
            statistics.median(one),
            f"a single replica; {mebibytes} MiB, {rate >> 20} MiB/s a sender",
            at_most=AT_MOST,
        )
    }


def _together(replicas: list[Child]) -> float:
    start = time.perf_counter()
    for replica in replicas:
        replica.send("fetch")
    for replica in replicas:
        replica.answer()
    return time.perf_counter() - start
