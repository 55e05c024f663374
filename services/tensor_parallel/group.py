"""The ranks of one model, as the service that started them sees them: start, batches, failure, end.

The ranks are child processes (rank.py) that divide the model; every rank gets every batch. The service itself
is no rank and takes part in no collective, so that it notices at once if a rank ends, and within
`LOST_SECONDS` if a rank is suspended. Does not import torch.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead import log
from fairlead.config.serving import DividedSection
from fairlead.errors import (
    ConfigError,
    InternalError,
    ModelLoadError,
    RankLost,
    ReplicaLost,
    Unavailable,
    exit_code,
)
from fairlead.local.process import describe_exit
from fairlead.local.ranks import SUSPENDED_SECONDS, rank_environment, share_of_threads
from fairlead.planning.machine import visible_gpus
from services.tensor_parallel import frames

logger = logging.getLogger(__name__)

LOST_SECONDS = 30.0
"""A rank that has sent nothing for this time is lost; it sends a beat every second."""
_CHECK_SECONDS = 1.0
_OTHERS_SECONDS = 5.0
"""Time in which all ranks have to report an error that one of them reports: then the group can continue."""
_END_SECONDS = 5.0


@dataclass(slots=True)
class _Rank:
    """One rank, as far as its messages show it."""

    number: int
    process: subprocess.Popen[bytes]
    seen: float
    """Monotonic time of its last message."""
    facts: dict[str, Any] | None = None
    """What it reported about its model; None until it is loaded."""
    line: str = "start"
    """Where its main thread was at the last beat."""
    finished: int = 0
    """Number of its last finished batch."""
    error: str = ""
    """Its error in that batch; empty if it succeeded."""
    arrays: bytes = b""
    """Its results of that batch; only those of rank 0 are sent."""


@dataclass(slots=True)
class _Batch:
    """The batch in progress; its number is 0 if there is none."""

    number: int = 0
    started: float = field(default_factory=time.monotonic)


class RankGroup:
    """The ranks of one model. Its methods block, and may be called from any thread."""

    def __init__(self, module: str, path: str, section: DividedSection, *, name: str) -> None:
        """Start the ranks, and wait until all have loaded their part of the model.

        Args:
            module: the module of a rank, run with `python -m`.
            path: folder or hub id of the model.
            section: the section of the service.
            name: name of the service.

        Raises:
            ConfigError: if there are fewer GPUs than ranks.
            ModelLoadError: if the model cannot be loaded or divided.
            RankLost: if a rank cannot be started, ends or fails for another reason.
        """
        self.failure: Future[None] = Future()
        """Fails with RankLost if a rank is lost. The group cannot be used then."""
        self._name = name
        self._size = section.tensor_parallel
        self._stall_seconds = section.timeout_seconds
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._lost: Exception | None = None
        self._closing = False
        self._batch = _Batch()
        self._ranks: list[_Rank] = []
        self._stopped = threading.Event()
        gpus = self._gpus(section)
        self._folder = Path(tempfile.mkdtemp(prefix="fairlead-ranks-"))
        try:
            for number in range(self._size):
                self._start(module, path, section, gpus, number)
            logger.info("%s: starting %d ranks for %r", name, self._size, path)
            threading.Thread(target=self._watch, name="ranks", daemon=True).start()
            self.facts = self._loaded()
        except BaseException:
            self.close()
            raise

    def run(self, arrays: bytes) -> bytes:
        """Run a batch on every rank; return the results of rank 0.

        Raises:
            ReplicaLost: if a rank is lost during the batch.
            Unavailable: if one was lost before, or the group is closed.
            InternalError: if the batch fails on every rank; the next one can be run.
        """
        with self._turn:
            with self._changed:
                self._check()
                number = self._batch.number + 1
                self._batch = _Batch(number)
            for rank in self._ranks:
                self._send(rank, {"batch": number}, arrays)
            with self._changed:
                return self._results(number)

    def close(self) -> None:
        """End the ranks. A batch in progress fails with Unavailable."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # Closing the pipe of a suspended rank waits for the batch that is being written to it.
        last_resort = threading.Timer(_END_SECONDS, self._kill)
        last_resort.start()
        for rank in self._ranks:
            with suppress(OSError):
                assert rank.process.stdin is not None
                rank.process.stdin.close()
        for rank in self._ranks:
            rank.process.wait()
        last_resort.cancel()
        self._stopped.set()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _gpus(self, section: DividedSection) -> tuple[str, ...]:
        """Return the GPUs of the ranks; none if they compute on the CPU."""
        gpus = visible_gpus() if section.device != "cpu" else ()
        if gpus and len(gpus) < self._size:
            raise ConfigError(
                f"{self._name}.tensor_parallel",
                got=f"{self._size}, with {len(gpus)} GPUs (CUDA_VISIBLE_DEVICES={','.join(gpus)})",
                allowed=f"at most one rank for each GPU, or {self._name}.device = 'cpu'",
            )
        return gpus

    def _start(
        self, module: str, path: str, section: DividedSection, gpus: Sequence[str], number: int
    ) -> None:
        """Start one rank, and the thread that follows it."""
        style, level = log.current()
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=_environment(section, gpus, number),
            )
        except OSError as error:
            raise RankLost(f"{self._named(number)} cannot be started: {error}") from error
        rank = _Rank(number, process, time.monotonic())
        self._ranks.append(rank)
        threading.Thread(target=self._follow, args=(rank,), name=f"rank-{number}", daemon=True).start()
        settings = section.model_copy(update={"threads": share_of_threads(section.threads, ranks=self._size)})
        start = {
            "rank": number,
            "size": self._size,
            "meeting_point": str(self._folder / "meet"),
            "path": path,
            "section": settings.model_dump(mode="json"),
            "log": {"style": style, "level": level if number == 0 else "WARNING"},
        }
        with suppress(OSError):  # it has ended: its reader thread reports that
            assert process.stdin is not None
            frames.write(process.stdin, start)

    def _loaded(self) -> dict[str, Any]:
        """Wait until every rank is loaded; return what they reported."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._lost is not None or all(rank.facts is not None for rank in self._ranks)
            )
            if self._lost is not None:
                raise self._lost
            found = [rank.facts or {} for rank in self._ranks]
        for number, facts in enumerate(found):
            if facts != found[0]:
                raise InternalError(f"rank {number} loaded another model than rank 0: {facts}, {found[0]}")
        return found[0]

    def _check(self, *, running: bool = False) -> None:
        """Check that the ranks are there; while a batch is running, it may be what killed one."""
        if self._closing:
            raise Unavailable(f"the {self._name} service is stopping")
        if self._lost is not None:
            kind = ReplicaLost if running else Unavailable
            raise kind(
                f"the {self._name} service has lost a process of its model and starts again; its log says why"
            )

    def _send(self, rank: _Rank, header: Mapping[str, object], arrays: bytes) -> None:
        try:
            assert rank.process.stdin is not None
            frames.write(rank.process.stdin, header, arrays)
        except (OSError, ValueError):
            # It has ended, which its reader thread reports, or the group is closed.
            return

    def _results(self, number: int) -> bytes:
        """Wait for the end of a batch; return its results."""
        first = self._ranks[0]
        failed_at: float | None = None
        while True:
            self._check(running=True)
            finished = [rank for rank in self._ranks if rank.finished == number]
            failed = [rank for rank in finished if rank.error]
            if not failed and first in finished:
                return first.arrays
            if failed and len(finished) == len(self._ranks):
                if len(failed) == len(finished):
                    raise InternalError(f"the batch failed on every rank: {failed[0].error}")
                self._lose(f"{self._named(failed[0].number)} failed: {failed[0].error}")
                continue
            if failed:
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > _OTHERS_SECONDS:
                    self._lose(f"{self._named(failed[0].number)} failed: {failed[0].error}")
                    continue
            self._changed.wait(0.5 if failed else None)

    def _follow(self, rank: _Rank) -> None:
        """Read the messages of a rank until it ends."""
        assert rank.process.stdout is not None
        with rank.process.stdout as messages:
            while (message := frames.read(messages)) is not None:
                with self._changed:
                    self._see(rank, *message)
                    self._changed.notify_all()
        code = rank.process.wait()
        with self._changed:
            self._lose(f"{self._named(rank.number)} has ended: {describe_exit(code)}")

    def _see(self, rank: _Rank, header: Mapping[str, Any], arrays: bytes) -> None:
        rank.seen = time.monotonic()
        rank.line = header.get("line", rank.line)
        if "facts" in header:
            rank.facts = header["facts"]
        if "finished" in header:
            rank.finished, rank.error, rank.arrays = header["finished"], header["error"], arrays
        if "failed" in header:
            message = header["failed"]
            mistake = ModelLoadError(message) if header["code"] == exit_code(ModelLoadError()) else None
            self._lose(f"{self._named(rank.number)} failed: {message}", mistake)

    def _watch(self) -> None:
        """Look for ranks that are suspended or hang, until the group is closed."""
        checked = time.monotonic()
        while not self._stopped.wait(_CHECK_SECONDS):
            now = time.monotonic()
            late = now - checked - _CHECK_SECONDS
            checked = now
            with self._changed:
                if late > SUSPENDED_SECONDS:
                    self._batch.started += late
                    for rank in self._ranks:
                        rank.seen += late
                self._look(now)

    def _look(self, now: float) -> None:
        for rank in self._ranks:
            # While it loads, importing a large library may keep its threads from running.
            silent = now - rank.seen
            if rank.facts is not None and silent > LOST_SECONDS:
                name = self._named(rank.number)
                self._lose(f"{name} has sent no heartbeat for {silent:.0f} s; it was at: {rank.line}")
        batch = self._batch
        running = [rank for rank in self._ranks if rank.finished < batch.number]
        if running and now - batch.started > self._stall_seconds:
            places = " and ".join(f"{self._named(rank.number)}, at: {rank.line}" for rank in running)
            self._lose(
                f"a batch has not ended for {now - batch.started:.0f} s ({self._name}.timeout_seconds = "
                f"{self._stall_seconds:g}) because of {places}"
            )

    def _lose(self, reason: str, error: Exception | None = None) -> None:
        """Give up, unless that is done or the group is closed: end every rank, fail the batch in progress."""
        if self._lost is not None or self._closing:
            return
        self._lost = error or RankLost(reason)
        logger.log(logging.ERROR if error is None else logging.DEBUG, "%s: %s", self._name, reason)
        self._kill()
        with suppress(InvalidStateError):
            self.failure.set_exception(self._lost)
        self._changed.notify_all()

    def _kill(self) -> None:
        for rank in self._ranks:
            rank.process.kill()

    def _named(self, number: int) -> str:
        return f"rank {number} of {self._size} of the {self._name} model"


def _environment(section: DividedSection, gpus: Sequence[str], number: int) -> dict[str, str]:
    """Return the environment of a rank: a GPU of its own, or its share of the threads."""
    # Chooses among the GPUs that a rank sees: only its own, or all of them if they are not known here.
    own = {"LOCAL_RANK": "0" if gpus else str(number)}
    if gpus or section.device == "cpu":
        own["CUDA_VISIBLE_DEVICES"] = gpus[number] if gpus else "-1"
    shared = rank_environment(os.environ, ranks=section.tensor_parallel, is_one_machine=True)
    return {**os.environ, **shared, **own}
