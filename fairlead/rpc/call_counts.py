"""Counts of the calls from this process to services, for metrics.

One object for the process, as clients are created in many places. Knows nothing about how it is exported.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from fairlead.rpc.call_types import call_type

COMMON_CODES = (
    "OK",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "UNAVAILABLE",
)
"""Statuses that a method has a count for from the start."""
_RETRIED = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION")
_Counts = dict[tuple[str, ...], float]


class CallCounts:
    """The counts of a process; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handled: Counter[tuple[str, ...]] = Counter()
        self._retries: Counter[tuple[str, ...]] = Counter()
        self._hedges: Counter[tuple[str, ...]] = Counter()
        self._exhausted: Counter[tuple[str, ...]] = Counter()

    def add_service(self, service: str, paths: Iterable[str] = ()) -> None:
        """Begin the counts of a service at 0.

        Args:
            service: its name, such as `policy`.
            paths: its methods, such as `/fairlead.v1.PolicyService/Generate`.
        """
        with self._lock:
            self._retries.update({(service, reason): 0 for reason in _RETRIED})
            self._hedges.update({(service, result): 0 for result in ("sent", "won")})
            self._exhausted.update({(service,): 0})
            self._handled.update({(*_names(path), code): 0 for path in paths for code in COMMON_CODES})

    def count_attempt(self, path: str, code: str) -> None:
        """Count an attempt of a method by its status; an empty path is not counted."""
        if path:
            self._add(self._handled, (*_names(path), code))

    def count_retry(self, service: str, reason: str) -> None:
        """Count an attempt that is repeated after one with the status `reason`."""
        self._add(self._retries, (service, reason))

    def count_hedge(self, service: str, result: str) -> None:
        """Count a late call: `sent` to another replica, or `won` by that one."""
        self._add(self._hedges, (service, result))

    def count_exhausted(self, service: str) -> None:
        """Count a call that failed because the budget of retries was used up."""
        self._add(self._exhausted, (service,))

    def handled(self) -> _Counts:
        """Return the attempts by type, service, method and status."""
        return self._copy(self._handled)

    def retries(self) -> _Counts:
        """Return the retries by service and reason."""
        return self._copy(self._retries)

    def hedges(self) -> _Counts:
        """Return the late calls by service and result."""
        return self._copy(self._hedges)

    def budget_exhausted(self) -> _Counts:
        """Return the calls without budget by service."""
        return self._copy(self._exhausted)

    def _add(self, counts: Counter[tuple[str, ...]], key: tuple[str, ...]) -> None:
        with self._lock:
            counts[key] += 1

    def _copy(self, counts: Counter[tuple[str, ...]]) -> _Counts:
        with self._lock:
            return dict(counts)


CALLS = CallCounts()
"""The counts of this process."""


def _names(path: str) -> tuple[str, str, str]:
    """Return type, service and method of `/service/method`."""
    service, _, method = path.removeprefix("/").partition("/")
    return call_type(service, method), service, method
