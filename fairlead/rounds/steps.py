"""Run steps in order, each once: a file in the run's folder records the finished ones and their time.

A step may be interrupted at any point and runs again as a whole, so it must be idempotent. Knows the names of
the steps, not what they do.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from fairlead.errors import ConfigError
from fairlead.transports.weights.disk import sync


class Steps:
    """Runs steps in order and remembers those that are done."""

    def __init__(
        self,
        file: Path,
        *,
        key: str,
        verb: str,
        total: int,
        show: Callable[[str], None],
        fresh: bool | None = None,
        elsewhere: str = "--set name=another",
    ) -> None:
        """
        Args:
            file: remembers the steps; its folder is the run's, and belongs to nothing else.
            key: hash of the settings; a folder with another key is refused.
            verb: the command that runs the steps, such as `quickstart`, for messages.
            total: number of steps, for the output.
            show: shows a line of progress.
            fresh: remove the folder of an earlier run of the same command and start over; None if the verb
                has no flag for it.
            elsewhere: the flag of the verb that names another folder, for messages.

        Raises:
            ConfigError: the folder belongs to the same command with other settings, or to something else.
        """
        self._file = file
        self._verb = verb
        self._show = show
        folder = file.parent
        self._key = key
        self._has_fresh = fresh is not None
        self._elsewhere = elsewhere
        self._total = total
        self._number = 0
        self._seconds: dict[str, float] = {}
        self._cpu_seconds: dict[str, float] = {}
        occupied = folder.is_dir() and any(folder.iterdir())
        if occupied and not self._file.is_file():
            raise ConfigError(
                "name",
                got=str(folder),
                allowed=f"a new or empty folder; this one is not empty and not of {_article(verb)}",
            )
        if fresh and occupied:
            shutil.rmtree(folder)
        elif occupied:
            self._resume()
        folder.mkdir(parents=True, exist_ok=True)
        self._save()

    @property
    def cpu_seconds(self) -> dict[str, float]:
        """CPU time of every finished step and the processes that it ran."""
        return dict(self._cpu_seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """Duration of every finished step."""
        return dict(self._seconds)

    def run(self, name: str, title: str, body: Callable[[], None]) -> None:
        """Run a step unless it has already finished."""
        self._number += 1
        place = f"[{self._number}/{self._total}] {title}"
        if name in self._seconds:
            self._show(f"{place}: already done, in {self._seconds[name]:.1f} s")
            return
        self._show(f"{place} …")
        started = time.monotonic()
        cpu_started = _cpu_seconds()
        body()
        self._seconds[name] = time.monotonic() - started
        self._cpu_seconds[name] = _cpu_seconds() - cpu_started
        self._save()
        self._show(f"    {self._seconds[name]:.1f} s")

    def forget(self, *names: str) -> None:
        """Let steps run again, if they are done: what they were made from has changed."""
        for name in names:
            self._seconds.pop(name, None)
            self._cpu_seconds.pop(name, None)
        self._save()

    def _resume(self) -> None:
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            key, seconds = kept["key"], {name: float(value) for name, value in kept["seconds"].items()}
            cpu_seconds = {name: float(value) for name, value in kept.get("cpu_seconds", {}).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                self._verb,
                got=f"{self._file}, which is damaged ({error})",
                allowed=f"the file as the command wrote it, or {self._elsewhere}",
            ) from error
        # As long as no step is done, nothing was made with the settings.
        if seconds and key != self._key:
            fresh = "--fresh to start over, " if self._has_fresh else ""
            raise ConfigError(
                self._verb,
                got=f"{self._file.parent}, made with other settings",
                allowed=f"the same seed and settings, {fresh}or {self._elsewhere}",
            )
        self._seconds, self._cpu_seconds = seconds, cpu_seconds

    def _save(self) -> None:
        kept = {"key": self._key, "seconds": self._seconds, "cpu_seconds": self._cpu_seconds}
        aside = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        aside.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        sync(aside)
        aside.replace(self._file)
        sync(self._file.parent)


def _article(verb: str) -> str:
    return f"{'an' if verb[0] in 'aeiou' else 'a'} {verb}"


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its child processes that have ended."""
    found = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in found)
