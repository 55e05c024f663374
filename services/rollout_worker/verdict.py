"""What becomes of a task when its answer failed: whose fault was it?

The data's fault dead-letters at once, a service's mistake is counted, an infrastructure that is away counts
as nobody's failure. Knows neither queue nor services; docs/queue-protocol.md lists the reasons.
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
from services.rollout_worker.assemble import Refused, Unusable


class Verdict(enum.Enum):
    """What to do with a task."""

    DEAD = "dead"
    """Dead-letter it: another try would end alike."""
    FAIL = "fail"
    """Count a failure; a peer may try, and the last failure dead-letters it."""
    RELEASE = "release"
    """Give it back uncounted, and wait a little."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and its reason."""

    verdict: Verdict
    """What to do."""
    letter: DeadLetter
    """Why."""


_INFRASTRUCTURE: dict[type[Exception], str] = {
    Overloaded: "service_overloaded",
    StaleWeights: "weights_too_old",
    DeadlineExceeded: "service_too_slow",
    Unauthenticated: "service_refuses_us",
    PermissionDenied: "service_refuses_us",
    Unavailable: "service_unavailable",
}


def judge(error: Exception) -> Judgement:
    """The verdict on an error of `Peers.answer`; what nobody foresaw is a failure that is counted."""
    if isinstance(error, Refused):
        return Judgement(Verdict.DEAD, DeadLetter(error.reason, str(error)))
    if isinstance(error, Unusable):
        return Judgement(Verdict.FAIL, DeadLetter(error.reason, str(error)))
    for kind, reason in _INFRASTRUCTURE.items():
        if isinstance(error, kind):
            return Judgement(Verdict.RELEASE, DeadLetter(reason, str(error)))
    if isinstance(error, InternalError):
        return Judgement(Verdict.FAIL, DeadLetter("service_error", str(error)))
    if isinstance(error, CorruptData):
        return Judgement(Verdict.FAIL, DeadLetter("answer_malformed", str(error)))
    return Judgement(Verdict.FAIL, DeadLetter("worker_error", f"{type(error).__name__}: {error}"))
