"""The identity of a span, as it travels in `traceparent`, and the ids derived from a run's own numbers.

Trainer and workers compute the same ids from the run, the task and its sending, so nothing travels through
Redis; policy replicas compute those of an update from the version of its weights. Knows nothing about spans.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.{0,200})?")
"""W3C Trace Context, level 1; later versions may append fields."""
_TASK_BITS = 64
"""The left half of a task's trace id depends on run and task only."""


@dataclass(frozen=True, slots=True)
class SpanContext:
    """Identifies a span in any process."""

    trace_id: int
    """128 bits, not 0."""
    span_id: int
    """64 bits, not 0."""
    is_sampled: bool
    """Whether the spans of this trace are recorded."""

    @property
    def traceparent(self) -> str:
        """The value of the W3C header."""
        if self is NOT_SAMPLED:
            return _NOT_SAMPLED
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{'01' if self.is_sampled else '00'}"

    @classmethod
    def parse(cls, traceparent: str | None) -> SpanContext | None:
        """Return the context of a header; None if there is none or it is invalid, as the standard demands."""
        if traceparent == _NOT_SAMPLED:
            return NOT_SAMPLED
        found = _TRACEPARENT.fullmatch(traceparent.strip()) if traceparent else None
        if found is None:
            return None
        context = cls(int(found[1], 16), int(found[2], 16), bool(int(found[3], 16) & 1))
        return context if context.trace_id and context.span_id else None


NOT_SAMPLED = SpanContext(1, 1, is_sampled=False)
"""The context of every task that is not sampled: nobody sees its trace, so it needs no id of its own."""
_NOT_SAMPLED = f"00-{1:032x}-{1:016x}-00"
"""Its header, which most calls of a run have."""


def of_task(run: str, task: int, sending: tuple[int, int], *, one_in: int) -> SpanContext:
    """Return the context of the first span, `dispatch`, of a sending of a task.

    Args:
        run: name of the run.
        task: the task.
        sending: incarnation and number of the sending.
        one_in: one task of this many is sampled. The task decides, so all its sendings are sampled or none.

    Returns:
        NOT_SAMPLED for a task that is not sampled.
    """
    incarnation, number = sending
    left = _digest(f"{run}\0task\0{task}")[:8]
    if not is_sampled(int.from_bytes(left) << _TASK_BITS, one_in):
        return NOT_SAMPLED
    rest = _digest(f"{run}\0sending\0{task}\0{incarnation}\0{number}")
    return SpanContext(int.from_bytes(left + rest[:8]), int.from_bytes(rest[8:16]), is_sampled=True)


def of_update(run: str, incarnation: int, update: int) -> SpanContext:
    """Return the context of the span `update` of the update that produced a version of the weights.

    Args:
        run: name of the run.
        incarnation: of the version.
        update: number of updates of the version.
    """
    digest = _digest(f"{run}\0update\0{incarnation}\0{update}")
    return SpanContext(int.from_bytes(digest[:16]), int.from_bytes(digest[16:24]), is_sampled=True)


def is_sampled(trace_id: int, one_in: int) -> bool:
    """Return whether a trace is recorded; every process decides alike."""
    return (trace_id >> _TASK_BITS) % one_in == 0


def _digest(text: str) -> bytes:
    # For each task: neither a copy of a begun digest nor joined parts are faster.
    return hashlib.sha256(f"fairlead\0{text}".encode(), usedforsecurity=False).digest()
