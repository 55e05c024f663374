"""The heartbeat between the ranks of a trainer: a rank that dies, hangs or is suspended ends all of them.

Every rank writes a beat to the store of rank 0 and reads the beats of all others, in a thread of its own. A
second thread checks when the last beats arrived: calls to a store whose process is suspended block for longer
than any timeout. What a rank does in between is not known here, except for the steps that it reports.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch._C._distributed_c10d import Store

from fairlead.config.infrastructure import RanksSection
from fairlead.errors import RankLost, exit_code
from fairlead.local.ranks import SUSPENDED_SECONDS

logger = logging.getLogger(__name__)

_LONGEST_INTERVAL_SECONDS = 1.0
_BEATS_PER_LIMIT = 5
"""Beats that have to be missed until a rank is lost."""
_REPORT_SECONDS = 30.0
"""A wait in a collective that takes this long is reported, and again after the same time."""
RESTARTED = "restarted"
"""Key of the store for the number of a rank whose process was started again while the others still ran."""
_COLLECTIVES = ("distributed_c10d.py", "_fsdp_collectives.py", "_fsdp_param_group.py")
"""Files of torch whose code waits for other ranks."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank reports about itself."""

    host: str = ""
    """Its host name."""
    number: int = 0
    """Number of the beat."""
    order: int = 0
    """Number of the last order that it took."""
    steps: int = 0
    """Steps of progress in this order."""
    busy: bool = False
    """Whether the order is in progress."""
    doing: str = "start"
    """What it does, or waits for."""
    line: str = ""
    """Where its main thread is in the code."""
    in_collective: bool = False
    """Whether its main thread waits there for other ranks."""
    code: int = 0
    """Exit code of a rank that has ended with an error."""
    reason: str = ""
    """Its error; empty if there is none."""
    done: bool = False
    """Whether it has finished its work."""

    def to_json(self) -> str:
        """Return the beat as it is stored."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> Beat:
        """Read what `to_json` returned."""
        return cls(**json.loads(data))


@dataclass(frozen=True, slots=True)
class Loss:
    """Why all ranks must end."""

    message: str
    """Names the rank, and what it did or waited for."""
    code: int = exit_code(RankLost())
    """Exit code of the others."""


class Watch:
    """Decides from the beats of all ranks whether one of them is lost. Knows neither threads nor stores."""

    def __init__(self, size: int, *, lost_seconds: float, stall_seconds: float, now: float) -> None:
        """
        Args:
            size: number of ranks.
            lost_seconds: longest time between two beats.
            stall_seconds: longest time between two steps of an order.
            now: monotonic time in seconds, as in the other methods.
        """
        self._lost_seconds = lost_seconds
        self._stall_seconds = stall_seconds
        self._beats = [Beat()] * size
        self._arrived = [now] * size
        self._moved = [now] * size
        # When each rank entered the collective that it is in, or left its last one.
        self._crossed = [now] * size

    def see(self, rank: int, beat: Beat, *, now: float) -> Loss | None:
        """Record a beat; return the loss that the beat itself reports."""
        last = self._beats[rank]
        if beat.number != last.number:
            self._arrived[rank] = now
        if (beat.order, beat.steps, beat.busy) != (last.order, last.steps, last.busy):
            self._moved[rank] = now
        if beat.in_collective != last.in_collective:
            self._crossed[rank] = now
        self._beats[rank] = beat
        if beat.reason:
            return Loss(f"{self._name(rank)} ended: {beat.reason}", beat.code)
        return None

    def check(self, now: float) -> Loss | None:
        """Return the loss of a rank that does not beat, or that hangs; None if there is none."""
        running = [rank for rank, beat in enumerate(self._beats) if not beat.done]
        for rank in running:
            silent = now - self._arrived[rank]
            if silent > self._lost_seconds:
                return Loss(
                    f"{self._name(rank)} has sent no heartbeat for {silent:.0f} s "
                    f"(ranks.lost_seconds = {self._lost_seconds:g}); it was at: {self._place(rank)}"
                )
        stalled = [
            rank
            for rank in running
            if self._beats[rank].busy and now - self._moved[rank] > self._stall_seconds
        ]
        if not stalled:
            return None
        hanging = [f"{self._name(rank)}, at: {self._place(rank)}" for rank in self._hanging(running)]
        return Loss(
            f"no progress for {now - self._moved[stalled[0]]:.0f} s "
            f"(ranks.stall_seconds = {self._stall_seconds:g}) because of {' and '.join(hanging)}"
        )

    def wait(self, rank: int, *, seconds: float, now: float) -> str:
        """Return for which ranks one waits in a collective, and what they do; empty if it does not wait long.

        A wait for an order in progress ends with `stall_seconds`; others, such as for models that are loaded,
        have no limit.
        """
        own = self._beats[rank]
        if not own.in_collective or now - self._crossed[rank] < seconds:
            return ""
        still = [
            other
            for other, beat in enumerate(self._beats)
            if other != rank and not beat.done and now - self._crossed[other] >= seconds
        ]
        outside = [other for other in still if not self._beats[other].in_collective]
        if not outside and len(still) < len(self._beats) - 1:
            return ""
        names = [f"{self._name(other)}, at: {self._place(other)}" for other in outside or still]
        return (
            f"{self._name(rank)} has waited {now - self._crossed[rank]:.0f} s, at: {self._place(rank)}, "
            f"for {' and '.join(names)}"
        )

    def _hanging(self, running: Sequence[int]) -> list[int]:
        """Return the ranks for which the others wait, as far as their beats show it."""
        newest = max(self._beats[rank].order for rank in running)
        late = [rank for rank in running if self._beats[rank].order < newest]
        busy = [rank for rank in running if self._beats[rank].busy]
        outside = [rank for rank in busy if not self._beats[rank].in_collective]
        fewest = min((self._beats[rank].steps for rank in busy), default=0)
        return late or outside or [rank for rank in busy if self._beats[rank].steps == fewest]

    def silent(self, seconds: float, *, now: float) -> list[str]:
        """Return the names of the ranks that have not beaten for some seconds."""
        return [
            self._name(rank)
            for rank, arrived in enumerate(self._arrived)
            if now - arrived > seconds and not self._beats[rank].done
        ]

    def all_done(self) -> bool:
        """Return whether every rank but the first has finished."""
        return all(beat.done for beat in self._beats[1:])

    def suspended(self, seconds: float) -> None:
        """Allow for a time in which this process itself was suspended."""
        self._arrived = [arrived + seconds for arrived in self._arrived]
        self._moved = [moved + seconds for moved in self._moved]
        self._crossed = [crossed + seconds for crossed in self._crossed]

    def _place(self, rank: int) -> str:
        beat = self._beats[rank]
        return f"{beat.doing} ({beat.line})" if beat.line else beat.doing

    def _name(self, rank: int) -> str:
        host = self._beats[rank].host
        return f"rank {rank} of {len(self._beats)}" + (f" on {host}" if host else "")


def _end(loss: Loss) -> None:
    """End the process at once: the main thread may be in a collective that never returns."""
    logger.critical("%s", loss.message)
    sys.stderr.write(f"RankLost: {loss.message}\n")
    sys.stderr.flush()
    os._exit(loss.code)


class Heartbeat:
    """The threads of one rank."""

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        section: RanksSection,
        *,
        on_loss: Callable[[Loss], None] = _end,
    ) -> None:
        """
        Args:
            store: a connection of its own to the store of the ranks, in which every rank has left a beat.
            rank: the number of this rank.
            size: number of ranks.
            section: limits.
            on_loss: called in a thread when a rank is lost.
        """
        self.interval_seconds = min(_LONGEST_INTERVAL_SECONDS, section.lost_seconds / _BEATS_PER_LIMIT)
        self._store = store
        self._rank = rank
        self._size = size
        self._lost_seconds = section.lost_seconds
        self._on_loss = on_loss
        self._beat = Beat(socket.gethostname())
        self._sent = self._beat
        self._failing = False
        self._lock = threading.Lock()
        self._watch = Watch(
            size,
            lost_seconds=section.lost_seconds,
            stall_seconds=section.stall_seconds,
            now=time.monotonic(),
        )
        self._answered = time.monotonic()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"heartbeat-{name}", daemon=True)
            for name, target in (("beat", self._beats), ("check", self._checks))
        ]

    def start(self) -> None:
        """Start to beat."""
        for thread in self._threads:
            thread.start()

    @staticmethod
    def key(rank: int) -> str:
        """Return the key of a rank's beat in the store."""
        return f"beat/{rank}"

    def report(self, doing: str, *, busy: bool, order: int | None = None) -> None:
        """Report a step of progress; it is sent with the next beat.

        Args:
            doing: what this rank does now, or waits for.
            busy: whether an order is in progress.
            order: number of an order that begins with this step.
        """
        with self._lock:
            last = self._beat
            new = order is not None and order != last.order
            self._beat = replace(
                last,
                order=last.order if order is None else order,
                steps=0 if new else last.steps + 1,
                busy=busy,
                doing=doing,
            )

    def fail(self, code: int, reason: str) -> None:
        """Report to the other ranks that this one ends with an error, so that they end too."""
        with self._lock:
            self._beat = replace(self._beat, code=code, reason=reason)
        self._wait(lambda: bool(self._sent.reason), 3 * self.interval_seconds)
        if self._rank == 0:
            # It serves the store: it stays until the others have read the reason.
            self._stopped.wait(2 * self.interval_seconds)

    def finish(self) -> None:
        """Report to the other ranks that this one has finished; the first rank waits until all have."""
        with self._lock:
            self._beat = replace(self._beat, done=True, busy=False, doing="done")
        self._wait(
            lambda: self._sent.done and (self._rank != 0 or self._watch.all_done()), self._lost_seconds
        )
        self.stop()

    def stop(self) -> None:
        """Stop to beat and to check."""
        self._stopped.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(timeout=self.interval_seconds)

    def silent(self) -> list[str]:
        """Wait for a few beats after a collective failed; return the ranks from which none arrived.

        The last beat of a rank that has died may be read up to an interval after the failure.
        """
        self._failing = True
        found: list[str] = []

        def is_found() -> bool:
            with self._lock:
                found[:] = self._watch.silent(2.5 * self.interval_seconds, now=time.monotonic())
            return bool(found)

        self._wait(is_found, 4 * self.interval_seconds)
        return found

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        self._wake.set()
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(self.interval_seconds / 20)

    def _beats(self) -> None:
        keys = [self.key(rank) for rank in range(self._size)]
        number = 0
        while not self._stopped.is_set():
            number += 1
            self._wake.clear()
            line, in_collective = _main_thread()
            with self._lock:
                if not self._failing:
                    self._beat = replace(self._beat, line=line, in_collective=in_collective)
                self._beat = beat = replace(self._beat, number=number)
            try:
                self._store.set(keys[self._rank], beat.to_json())
                found = self._store.multi_get(keys)
                again = self._store.get(RESTARTED).decode() if self._store.check([RESTARTED]) else ""
            except RuntimeError as error:
                self._lose(Loss(f"rank 0, which serves the store of the ranks, has ended: {_brief(error)}"))
                return
            if again:
                self._lose(Loss(f"rank {again} was started again while the others still ran"))
                return
            self._answered = now = time.monotonic()
            for rank, data in enumerate(found):
                with self._lock:
                    loss = self._watch.see(rank, Beat.from_json(data), now=now) if data else None
                if loss is not None and rank != self._rank:
                    self._lose(loss)
                    return
            self._sent = beat
            self._wake.wait(self.interval_seconds)

    def _checks(self) -> None:
        checked = reported = time.monotonic()
        while not self._stopped.wait(self.interval_seconds / 2):
            now = time.monotonic()
            late = now - checked - self.interval_seconds / 2
            checked = now
            if late > SUSPENDED_SECONDS:
                self._answered += late
                with self._lock:
                    self._watch.suspended(late)
            if now - self._answered > self._lost_seconds:
                self._lose(
                    Loss(
                        f"rank 0, which serves the store of the ranks, has not answered for "
                        f"{now - self._answered:.0f} s (ranks.lost_seconds = {self._lost_seconds:g})"
                    )
                )
                return
            with self._lock:
                loss = self._watch.check(now)
                wait = self._watch.wait(self._rank, seconds=_REPORT_SECONDS, now=now)
            if loss is not None:
                self._lose(loss)
                return
            if wait and now - reported >= _REPORT_SECONDS:
                reported = now
                logger.warning("%s", wait)

    def _lose(self, loss: Loss) -> None:
        if not self._stopped.is_set():
            doing = self._beat.doing
            self._on_loss(Loss(f"{loss.message}; rank {self._rank} ends, at: {doing}", loss.code))


def _main_thread() -> tuple[str, bool]:
    """Return the line of code that the main thread is at, and whether it waits there in a collective."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "", False
    file = Path(frame.f_code.co_filename)
    line = f"{file.parent.name}/{file.name}:{frame.f_lineno} in {frame.f_code.co_name}"
    return line, file.name in _COLLECTIVES


def _brief(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
