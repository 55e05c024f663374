"""The stages of the quickstart, each done once: finished ones are remembered with their time.

Knows a folder and names; what a stage does is the caller's business.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from fairlead.errors import ConfigError
from trainer import durable


class Stages:
    """Runs stages in order and keeps `stages.json`."""

    def __init__(self, folder: Path, *, key: str, fresh: bool, total: int) -> None:
        """
        Args:
            folder: the run's folder.
            key: stands for every setting; a folder made with others is refused.
            fresh: start over; the folder of an earlier quickstart is removed.
            total: number of stages, for the display.

        Raises:
            ConfigError: the folder belongs to other settings, or to something else.
        """
        self._file, self._key, self._total, self._number = folder / "stages.json", key, total, 0
        self._seconds: dict[str, float] = {}
        self._cpu_seconds: dict[str, float] = {}
        occupied = folder.is_dir() and any(folder.iterdir())
        if occupied and not self._file.is_file():
            raise ConfigError(
                "name", got=f"{folder}, which no quickstart made", allowed="a folder of its own"
            )
        if fresh and occupied:
            shutil.rmtree(folder)
        elif occupied:
            self._take_up()
        folder.mkdir(parents=True, exist_ok=True)
        self._save()

    @property
    def seconds(self) -> dict[str, float]:
        """Time of every finished stage."""
        return dict(self._seconds)

    def run(self, name: str, title: str, body: Callable[[], None]) -> None:
        """Runs a stage unless it has finished before."""
        self._number += 1
        place = f"[{self._number}/{self._total}] {title}"
        if name in self._seconds:
            print(f"{place}: done before, in {self._seconds[name]:.1f} s", flush=True)
            return
        print(f"{place} …", flush=True)
        begun, cpu_begun = time.monotonic(), _cpu_seconds()
        body()
        self._seconds[name] = time.monotonic() - begun
        self._cpu_seconds[name] = _cpu_seconds() - cpu_begun
        self._save()
        print(f"    {self._seconds[name]:.1f} s", flush=True)

    def _take_up(self) -> None:
        kept = json.loads(self._file.read_text(encoding="utf-8"))
        if kept["key"] != self._key:
            raise ConfigError(
                "quickstart",
                got=f"{self._file.parent}, made with other settings",
                allowed="the same seed and settings again, --fresh to start over, or --set name=another",
            )
        self._seconds = {name: float(seconds) for name, seconds in kept["seconds"].items()}
        self._cpu_seconds = {name: float(value) for name, value in kept.get("cpu_seconds", {}).items()}

    def _save(self) -> None:
        kept = {"key": self._key, "seconds": self._seconds, "cpu_seconds": self._cpu_seconds}
        durable.write_json(self._file, kept)


def _cpu_seconds() -> float:
    """Of this process and of every one that it started and that has ended."""
    found = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in found)
