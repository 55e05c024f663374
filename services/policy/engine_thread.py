"""The thread that decodes: who runs, who waits, and the swap of weights between two steps.

Belongs to the engine, which hands it tickets and new weights from the asyncio side. What it does again and
again stands in `_round`. Knows no requests beyond their tickets, and no asyncio.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass

from fairlead import metrics, watchdog
from fairlead.errors import Unavailable
from fairlead.types import WeightVersion
from services.policy.decoder import Decoder
from services.policy.replacement import Replacement
from services.policy.sample import Sample
from services.policy.scheduler import Scheduler
from services.policy.ticket import Ticket
from services.runtime.exclusive import ExclusiveSlot

logger = logging.getLogger(__name__)

_FAILURES_IN_A_ROW = 3
"""Rounds that fail one after the other until the engine gives up and the process is started again."""


@dataclass(frozen=True, slots=True)
class _Swap:
    """Weights that wait to come in."""

    version: WeightVersion
    replacement: Replacement
    done: Future[None]


class EngineThread:
    """Runs the decoder until closed."""

    def __init__(
        self,
        decoder: Decoder,
        scheduler: Scheduler,
        policy_metrics: metrics.PolicyMetrics,
        *,
        finish_before_swap: bool,
        initial: WeightVersion | None,
    ) -> None:
        """`finish_before_swap`: running sequences end before a swap, new ones wait; none spans it."""
        self._decoder = decoder
        self._scheduler = scheduler
        self._metrics = policy_metrics
        self._finish_before_swap = finish_before_swap
        self._owner: dict[Sample, Ticket] = {}
        self._tokens_per_second = 0.0
        self._wake = threading.Condition()
        self._exclusive = ExclusiveSlot[Ticket]()
        self._swap: _Swap | None = None
        self._stopping = False
        self.failure: Future[None] = Future()
        """Gets the error with which the thread gives up."""
        self.version: WeightVersion | None = None
        """The weights in use."""
        if initial is not None:
            self._use(initial)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def put(self, ticket: Ticket) -> None:
        """Queues a request.

        Raises:
            Overloaded: the queue has no room.
            Unavailable: before the first weights, and while stopping.
        """
        with self._wake:
            self._check_running()
            if self.version is None:
                raise Unavailable("the policy has no weights yet")
            if ticket.exclusive:
                self._exclusive.claim(ticket, busy=bool(self._owner), served=self._serves(ticket))
            self._scheduler.put(ticket, tokens_per_second=self._tokens_per_second)
            self._wake.notify()

    def swap(self, version: WeightVersion, replacement: Replacement) -> Future[None]:
        """Brings in weights between two steps; the future is done when they, or newer ones, are in use."""
        swap = _Swap(version, replacement, Future())
        with self._wake:
            self._check_running()
            superseded, self._swap = self._swap, swap
            self._wake.notify()
        if superseded is not None:
            _answer(superseded)
        return swap.done

    def wake(self) -> None:
        """Has the thread look who left."""
        with self._wake:
            self._wake.notify()

    def close(self) -> None:
        """Stops; whoever still waits gets Unavailable."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _check_running(self) -> None:
        if self._stopping:
            raise Unavailable("the policy is stopping")

    def _run(self) -> None:
        failures = 0
        while self._wait_for_work():
            try:
                with watchdog.PROCESS.waiting("model", "a decoding step"):
                    self._round()
                failures = 0
            except Exception as error:
                failures += 1
                logger.exception("decoding failed; its requests fail, the engine goes on")
                self._fail_running(error)
                if failures == _FAILURES_IN_A_ROW:
                    self.failure.set_exception(error)
                    break
        with self._wake:
            self._stopping = True
            swap, self._swap = self._swap, None
        gone = Unavailable("the policy is stopping")
        if swap is not None:
            with suppress(InvalidStateError):
                swap.done.set_exception(gone)
        self._fail_running(gone)
        for ticket in self._scheduler.tickets():
            ticket.fail(gone)

    def _wait_for_work(self) -> bool:
        """Sleeps until there is something to do. Returns False when stopping."""
        with self._wake:
            while not self._stopping:
                if self._swap is not None or self._decoder.running:
                    return True
                tickets = self._scheduler.tickets()
                now = time.monotonic()
                if (held := self._exclusive.reserved_seconds()) and not any(
                    ticket.closed for ticket in tickets
                ):
                    self._wake.wait(held)
                    continue
                deadlines = [ticket.deadline(self.version) for ticket in tickets]
                due = min((deadline for deadline in deadlines if deadline is not None), default=None)
                if any(ticket.closed or self._serves(ticket) for ticket in tickets):
                    return True
                if due is not None and due <= now:
                    return True
                self._wake.wait(None if due is None else due - now)
            return False

    def _round(self) -> None:
        self._drop_departed()
        swapping = self._swap_if_due()
        if self.version is None:
            return
        if not swapping:
            taken = self._take(self.version)
            if taken:
                samples = [sample for _, sample in taken]
                self._decoder.join(samples, self.version)
                self._hand_out(samples)
        if self._decoder.running:
            start = time.monotonic()
            samples = list(self._decoder.running)
            self._decoder.step(self.version)
            self._metrics.steps.inc()
            self._hand_out(samples)
            rate = len(samples) / (time.monotonic() - start)
            self._tokens_per_second += 0.1 * (rate - self._tokens_per_second)
        self._metrics.slots_used.set(len(self._decoder.running))
        self._metrics.waiting.set(len(self._scheduler))

    def _take(self, version: WeightVersion) -> list[tuple[Ticket, Sample]]:
        """Who joins now, entered as running before anybody may claim to be alone."""
        with self._wake:
            if not self._exclusive.admits(self._owner.values()):
                return []
            free = self._decoder.slots - len(self._decoder.running)
            taken = self._scheduler.take(free=free, version=version, only=self._exclusive.holder)
            self._owner.update((sample, ticket) for ticket, sample in taken)
            return taken

    def _drop_departed(self) -> None:
        now = time.monotonic()
        running = dict.fromkeys(self._owner.values())
        for ticket in (*running, *self._scheduler.tickets()):
            ticket.expire_if_due(now, self.version)
        self._scheduler.drop_closed()
        self._leave([sample for sample, ticket in self._owner.items() if ticket.closed])

    def _swap_if_due(self) -> bool:
        """Swaps if new weights wait and may come in. Returns whether they still wait."""
        with self._wake:
            if self._swap is None:
                return False
            if self._finish_before_swap and self._decoder.running:
                return True
            swap, self._swap = self._swap, None
        start = time.perf_counter()
        if self.version is None or swap.version > self.version:
            swap.replacement.apply()
            self._use(swap.version)
            self._metrics.swaps.inc()
            self._metrics.swap_seconds.observe(time.perf_counter() - start)
            logger.info(
                "weights %s in use", swap.version, extra={"running_sequences": len(self._decoder.running)}
            )
        _answer(swap)
        return False

    def _use(self, version: WeightVersion) -> None:
        self.version = version
        self._metrics.weight_incarnation.set(version.incarnation)
        self._metrics.weight_update.set(version.update)

    def _hand_out(self, samples: Sequence[Sample]) -> None:
        """Tells the owners of samples about their newest token; those that ended leave."""
        self._metrics.tokens.inc(len(samples))
        left = []
        for sample in samples:
            ticket = self._owner[sample]
            if not math.isfinite(sample.logprobs[-1]):
                ticket.fail(FloatingPointError(f"logits are not finite under weights {self.version}"))
                self._decoder.scrub()
                left.append(sample)
                continue
            ticket.advance(sample)
            if sample.finish_reason is not None:
                left.append(sample)
        self._leave(left)

    def _leave(self, samples: Sequence[Sample]) -> None:
        self._decoder.leave(samples)
        for sample in samples:
            del self._owner[sample]

    def _fail_running(self, error: Exception) -> None:
        for ticket in self._owner.values():
            ticket.fail(error)
        self._owner.clear()
        self._decoder.reset()

    def _serves(self, ticket: Ticket) -> bool:
        return self.version is not None and ticket.is_served_by(self.version)


def _answer(swap: _Swap) -> None:
    with suppress(InvalidStateError):  # whoever asked has left
        swap.done.set_result(None)
