"""Run the stages of the quickstart, each once: `stages.json` records finished stages and their time.

Knows the folder and the names of the stages, not what they do.
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
    """Runs stages in order and writes `stages.json`."""

    def __init__(self, folder: Path, *, key: str, fresh: bool, total: int) -> None:
        """
        Args:
            folder: the run's folder.
            key: hash of the settings; a folder with another key is refused.
            fresh: remove the folder of an earlier quickstart and start over.
            total: number of stages, for the output.

        Raises:
            ConfigError: the folder belongs to a quickstart with other settings, or to something else.
        """
        self._file = folder / "stages.json"
        self._key = key
        self._total = total
        self._number = 0
        self._seconds: dict[str, float] = {}
        self._cpu_seconds: dict[str, float] = {}
        occupied = folder.is_dir() and any(folder.iterdir())
        if occupied and not self._file.is_file():
            raise ConfigError(
                "name",
                got=f"{folder}, which is not empty and not of a quickstart",
                allowed="a new or empty folder",
            )
        if fresh and occupied:
            shutil.rmtree(folder)
        elif occupied:
            self._resume()
        folder.mkdir(parents=True, exist_ok=True)
        self._save()

    @property
    def seconds(self) -> dict[str, float]:
        """Duration of every finished stage."""
        return dict(self._seconds)

    def run(self, name: str, title: str, body: Callable[[], None]) -> None:
        """Run a stage unless it has already finished."""
        self._number += 1
        place = f"[{self._number}/{self._total}] {title}"
        if name in self._seconds:
            print(f"{place}: already done, in {self._seconds[name]:.1f} s", flush=True)
            return
        print(f"{place} …", flush=True)
        started = time.monotonic()
        cpu_started = _cpu_seconds()
        body()
        self._seconds[name] = time.monotonic() - started
        self._cpu_seconds[name] = _cpu_seconds() - cpu_started
        self._save()
        print(f"    {self._seconds[name]:.1f} s", flush=True)

    def _resume(self) -> None:
        kept = json.loads(self._file.read_text(encoding="utf-8"))
        if kept["key"] != self._key:
            raise ConfigError(
                "quickstart",
                got=f"{self._file.parent}, made with other settings",
                allowed="the same seed and settings, --fresh to start over, or --set name=another",
            )
        self._seconds = {name: float(seconds) for name, seconds in kept["seconds"].items()}
        self._cpu_seconds = {name: float(value) for name, value in kept.get("cpu_seconds", {}).items()}

    def _save(self) -> None:
        kept = {"key": self._key, "seconds": self._seconds, "cpu_seconds": self._cpu_seconds}
        durable.write_json(self._file, kept)


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its child processes that have ended."""
    found = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in found)
