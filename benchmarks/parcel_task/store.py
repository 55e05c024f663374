"""Finished runs as files, so that an interrupted benchmark continues with what is missing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from benchmarks.quickstart import OutOfTime
from fairlead.errors import ConfigError, FairleadError

Outcome = TypeVar("Outcome")
"""A dataclass of numbers: what a run gave."""


class _Run(Hashable, Protocol):
    """A run that can be repeated; its text is for people."""

    @property
    def name(self) -> str:
        """Name of its file."""
        ...

    @property
    def kind(self) -> Hashable:
        """What fails for every seed if it fails for one."""
        ...

    def key(self) -> str:
        """Return a digest of all settings that its outcome depends on, but not of our code."""
        ...


Run = TypeVar("Run", bound=_Run)


def key(settings: Mapping[str, object]) -> str:
    """Return a short digest of settings that JSON can hold; the order of their names does not matter."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Report a kept file that cannot be read in the block.

    Raises:
        ConfigError: the block found the file to be damaged.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            str(file),
            got=f"damaged content ({error})",
            allowed="the file as the benchmark wrote it; if you remove it, the same command makes it again",
        ) from error


class Store(Generic[Outcome]):
    """Finished runs in a folder."""

    def __init__(self, folder: Path, read: Callable[[dict[str, Any]], Outcome]) -> None:
        """
        Args:
            folder: where the files are; made if it does not exist.
            read: makes an outcome of the fields that it was kept with.
        """
        self._folder = folder
        self._read = read
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, digest: str) -> Outcome | None:
        """Return the run of a name with exactly these settings; None if it has not finished.

        Raises:
            ConfigError: its file is damaged.
        """
        file = self._file(name, digest)
        if not file.exists():
            return None
        with readable(file):
            return self._read(json.loads(file.read_text(encoding="utf-8")))

    def put(self, name: str, digest: str, outcome: Outcome) -> None:
        """Keep a run."""
        file = self._file(name, digest)
        unfinished = file.with_suffix(".part")
        fields: Any = outcome
        unfinished.write_text(json.dumps(dataclasses.asdict(fields), indent=2) + "\n")
        unfinished.rename(file)

    def _file(self, name: str, digest: str) -> Path:
        return self._folder / f"{name}-{digest}.json"


def measure_all(
    runs: Sequence[Run], store: Store[Outcome], measure: Callable[[Run], Outcome], *, deadline: float
) -> dict[Run, Outcome]:
    """Return the runs that have finished, now or before; print the others and why.

    A kind of run that fails is not tried again with other seeds.

    Args:
        runs: what to measure.
        store: runs that have finished before, and from now on.
        measure: runs one; raises OutOfTime if it did not end.
        deadline: Unix time after which none is started.

    Raises:
        ConfigError: the file of a finished run is damaged; nothing has been measured.
    """
    digests = {run: run.key() for run in runs}
    kept = {run: known for run in runs if (known := store.get(run.name, digests[run])) is not None}
    finished: dict[Run, Outcome] = {}
    missing: dict[Run, str] = {}
    failed: set[Hashable] = set()
    measured, seconds = 0, 0.0
    for place, run in enumerate(runs):
        if run in kept:
            finished[run] = kept[run]
        elif run.kind in failed:
            missing[run] = "not tried, because an earlier seed failed"
        elif time.time() > deadline:
            missing[run] = "no time left"
        else:
            try:
                begun = time.time()
                finished[run] = measure(run)
                store.put(run.name, digests[run], finished[run])
                measured, seconds = measured + 1, seconds + time.time() - begun
                left = (len(runs) - place - 1) * seconds / measured / 60
                print(
                    f"{place + 1} of {len(runs)}, at most {left:.0f} min left: {run}: {finished[run]}",
                    file=sys.stderr,
                    flush=True,
                )
            except OutOfTime:
                missing[run] = "killed when the time was up"
            except FairleadError as error:
                failed.add(run.kind)
                missing[run] = str(error)
    for run, why in missing.items():
        print(f"missing: {run}: {why}", file=sys.stderr)
    if missing:
        print("the same command continues with what is missing", file=sys.stderr)
    return finished
