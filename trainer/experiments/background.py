"""Lets a tool work in a thread of its own, so that neither its network nor its errors reach the training.

What it does not take in time is dropped, and the log says how much.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainer.experiments.base import ExperimentLog

logger = logging.getLogger(__name__)

MAX_WAITING = 1_000
"""Steps that wait to be written; further ones are dropped."""
CLOSE_SECONDS = 60.0
"""Longest delay of the end of a stage."""


@dataclass(frozen=True, slots=True)
class _Step:
    step: int
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _End:
    failed: bool


class Background:
    """An experiment log that works in a thread."""

    def __init__(
        self, name: str, open_log: Callable[[], ExperimentLog], *, close_seconds: float = CLOSE_SECONDS
    ) -> None:
        """
        Args:
            name: of the tool, for messages.
            open_log: opens the tool's log; called in the thread.
            close_seconds: how long `close` waits for what is left.
        """
        self._name = name
        self._open = open_log
        self._close_seconds = close_seconds
        self._steps: queue.Queue[_Step | _End] = queue.Queue(MAX_WAITING)
        self._dropped = 0
        self._failed = 0
        self._thread = threading.Thread(target=self._work, name=f"experiment-{name}", daemon=True)
        self._thread.start()

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """Hand the figures of a step over; never waits."""
        if not self._thread.is_alive():
            return  # it could not be opened, and the log says why
        try:
            self._steps.put_nowait(_Step(step, dict(figures)))
        except queue.Full:
            self._dropped += 1
            if self._dropped == 1:
                logger.warning("%s does not keep up: steps are dropped there; the run continues", self._name)

    def close(self, *, failed: bool) -> None:
        """Wait for what is left, for a limited time."""
        try:
            self._steps.put(_End(failed), timeout=self._close_seconds if self._thread.is_alive() else 0)
        except queue.Full:
            self._dropped += self._steps.qsize()
        self._thread.join(self._close_seconds)
        if self._thread.is_alive():
            logger.warning(
                "%s has not written everything within %g s: the figures are in the metrics file of the run",
                self._name,
                self._close_seconds,
            )
        elif self._dropped or self._failed:
            logger.warning("%s lacks %d steps of this stage", self._name, self._dropped + self._failed)

    def _work(self) -> None:
        try:
            opened = self._open()
        except Exception as error:  # noqa: BLE001 - no tool stops a run
            logger.error("%s gets no figures of this stage; the run continues: %s", self._name, _line(error))
            return
        while isinstance(item := self._steps.get(), _Step):
            try:
                opened.record(item.step, item.figures)
            except Exception as error:  # noqa: BLE001
                self._failed += 1
                if self._failed == 1:
                    logger.warning(
                        "%s did not take step %d; the run continues: %s", self._name, item.step, _line(error)
                    )
        try:
            opened.close(failed=item.failed)
        except Exception as error:  # noqa: BLE001
            logger.warning("%s could not be closed: %s", self._name, _line(error))


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
