"""Check that a long run does not grow: memory of every process, of Redis, and the number of files.

Runs PPO on the quickstart's models for a thousand updates of a few answers each. Resident memory in the last
tenth of the updates is compared with the third tenth, when caches and allocators have reached their size; the
slope of a line through everything after it is reported too.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import redis

from benchmarks import quickstart
from benchmarks.result import Result, Settings
from fairlead.config.folder import RunFolder
from fairlead.errors import ProcessFailed
from fairlead.local.run_files import read_pids, read_progress

UPDATES = 1_000
AT_MOST = 1.1
"""Limit for memory: allocators keep a little of what they once received."""
_LOOK_SECONDS = 0.5
_MEBIBYTE = 1 << 20


@dataclass(slots=True)
class Track:
    """A value over the updates of a run."""

    updates: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, update: int, value: float) -> None:
        """Add a sample."""
        self.updates.append(update)
        self.values.append(value)

    def between(self, first: float, last: float, *, total: int) -> list[float]:
        """Return the values between two shares of the run."""
        pairs = zip(self.updates, self.values, strict=True)
        return [value for update, value in pairs if first * total <= update <= last * total]

    def slope(self, *, since: float, total: int) -> float:
        """Return the change over a thousand updates, from a line through the values after a share of the
        run.
        """
        kept = [(u, v) for u, v in zip(self.updates, self.values, strict=True) if u >= since * total]
        if len({update for update, _ in kept}) < 2:
            return float("nan")
        updates, values = np.array(kept, dtype=np.float64).T
        return 1000 * float(np.polyfit(updates, values, 1)[0])


def run(settings: Settings) -> dict[str, Result]:
    """Compare the last tenth with the third, for every process, Redis and files."""
    source = quickstart.ensure(settings.source)
    total = 20 if settings.quick else UPDATES
    extra: dict[str, object] = {
        "ppo.updates": total,
        "ppo.batch_size": 8,
        "ppo.mini_batch_size": 8,
        "evaluation.every_updates": 0,
        "guard.action": '"warn"',
    }
    with tempfile.TemporaryDirectory() as name:
        overrides = quickstart.settings(source, Path(name), "long", extra)
        folder = quickstart.config(overrides).folder
        tracks = _watch(overrides, folder)
    return dict(_results(tracks, total))


def _results(tracks: dict[str, Track], total: int) -> Iterator[tuple[str, Result]]:
    for name, track in sorted(tracks.items()):
        early, late = track.between(0.2, 0.3, total=total), track.between(0.9, 1.0, total=total)
        if not early or not late:
            continue  # a process that did not exist all the time
        slope = track.slope(since=0.3, total=total)
        unit = "files" if name == "files" else "MiB"
        what = f"the third tenth of {total} updates; slope {slope:+.2f} {unit} in 1,000 updates"
        yield (
            f"endurance_{name.replace('-', '_')}",
            Result(statistics.median(late), unit, statistics.median(early), what, at_most=AT_MOST),
        )


def _watch(overrides: dict[str, str], folder: RunFolder) -> dict[str, Track]:
    flags = itertools.chain.from_iterable(("--set", f"{key}={value}") for key, value in overrides.items())
    command = [sys.executable, "-m", "fairlead.cli", "ppo", str(quickstart.CONFIG), *flags]
    tracks: dict[str, Track] = {}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                _look(folder, process.pid, tracks)
                time.sleep(_LOOK_SECONDS)
        finally:
            process.terminate()
            process.wait()
        said.seek(0)
        if process.returncode:
            code = process.returncode
            raise ProcessFailed(f"fairlead ppo ended with exit code {code}: {said.read()[-2000:]}")
    return tracks


def _look(folder: RunFolder, supervisor: int, tracks: dict[str, Track]) -> None:
    now = read_progress(folder.progress)
    if now is None or now.step == 0:
        return
    processes = {**read_pids(folder.processes), "supervisor": supervisor}
    for name, pid in processes.items():
        try:
            resident = psutil.Process(pid).memory_info().rss / _MEBIBYTE
        except psutil.Error:
            continue
        tracks.setdefault(f"rss_{name}", Track()).add(now.step, resident)
    used = _redis_bytes(list(processes.values()))
    if used is not None:
        tracks.setdefault("redis", Track()).add(now.step, used / _MEBIBYTE)
    # Folders appear and disappear meanwhile; the walk skips those that no longer exist.
    files = sum(len(names) for _, _, names in os.walk(folder.root))
    tracks.setdefault("files", Track()).add(now.step, files)


def _redis_bytes(pids: Sequence[int]) -> float | None:
    """Return the memory that Redis reports; its address and password are in the environment of the
    processes.
    """
    for pid in pids:
        try:
            url = psutil.Process(pid).environ().get("FAIRLEAD_QUEUE__REDIS_URL")
        except psutil.Error:
            continue
        if url:
            try:
                with redis.Redis.from_url(url, socket_timeout=1.0) as client:
                    return float(client.info("memory")["used_memory"])
            except redis.RedisError:
                return None
    return None
