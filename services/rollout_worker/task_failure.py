"""Decide what happens to a task after an error: dead-letter it, count a failure, or release it.

An error in the task itself dead-letters it at once, a mistake of a service is counted, and an outage is not
counted. Knows neither the queue nor the services; docs/queue-protocol.md lists the reasons.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fairlead.errors import (
    CorruptData,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    PermissionDenied,
    StaleWeights,
    Unauthenticated,
    Unavailable,
)
from fairlead.types import DeadLetter
from services.rollout_worker.assemble import InvalidTask, UnusableResult


class FailureAction(enum.Enum):
    """What to do with a task that failed."""

    DEAD_LETTER = "dead_letter"
    """Dead-letter it: another attempt would fail in the same way."""
    COUNT = "count"
    """Count a failure. Another worker may retry; the last failure allowed dead-letters the task."""
    RELEASE = "release"
    """Release it without counting a failure, and claim less until the services answer again."""


@dataclass(frozen=True, slots=True)
class TaskFailure:
    """An error, classified."""

    action: FailureAction
    """What to do with the task."""
    letter: DeadLetter
    """The reason."""


_OUTAGES: dict[type[Exception], str] = {
    Overloaded: "service_overloaded",
    StaleWeights: "weights_too_old",
    DeadlineExceeded: "service_too_slow",
    Unauthenticated: "service_refuses_us",
    PermissionDenied: "service_refuses_us",
    Unavailable: "service_unavailable",
}


def classify(error: Exception) -> TaskFailure:
    """Return what to do about an error of `ModelServices.answer`; an unknown error counts as a failure."""
    if isinstance(error, InvalidTask):
        return TaskFailure(FailureAction.DEAD_LETTER, DeadLetter(error.reason, str(error)))
    if isinstance(error, UnusableResult):
        return TaskFailure(FailureAction.COUNT, DeadLetter(error.reason, str(error)))
    for kind, reason in _OUTAGES.items():
        if isinstance(error, kind):
            return TaskFailure(FailureAction.RELEASE, DeadLetter(reason, str(error)))
    if isinstance(error, InternalError):
        return TaskFailure(FailureAction.COUNT, DeadLetter("service_error", str(error)))
    if isinstance(error, CorruptData):
        return TaskFailure(FailureAction.COUNT, DeadLetter("answer_malformed", str(error)))
    return TaskFailure(FailureAction.COUNT, DeadLetter("worker_error", f"{type(error).__name__}: {error}"))
