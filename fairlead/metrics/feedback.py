"""Metrics of the feedback service."""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from fairlead import tracing
from fairlead.metrics.buckets import SECONDS
from fairlead.metrics.series import make_series

SKIPS = ("unclear", "not_my_field", "harmful", "personal_data", "broken", "other")
"""Why labelers skip a task."""
_EXCHANGES = ("kept", "not_drawn", "duplicate", "near_duplicate", "over_user", "over_key", "failed")


class FeedbackMetrics:
    """The feedback service."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.requests = Counter(
            "fairlead_feedback_requests_total",
            "HTTP requests by route, `other` if there is none, and status; 499: the caller disconnected.",
            ["route", "status"],
            registry=registry,
        )
        make_series(self.requests, route=("other",), status=("404",))
        self.seconds = Histogram(
            "fairlead_feedback_request_seconds",
            "Time from the headers of a request to the end of its response.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        make_series(self.seconds, route=("other",))
        self.in_flight = Gauge(
            "fairlead_feedback_in_flight_requests", "Requests being answered.", registry=registry
        )
        self.judgments = Counter(
            "fairlead_feedback_judgments_total",
            "Judgments handed in, by kind: ranking, text.",
            ["kind"],
            registry=registry,
        )
        make_series(self.judgments, kind=("ranking", "text"))
        self.late = Counter(
            "fairlead_feedback_late_total",
            "Judgments that came after their place had been given to somebody else.",
            registry=registry,
        )
        self.skips = Counter(
            "fairlead_feedback_skips_total",
            "Tasks skipped, by reason: unclear, not_my_field, harmful, personal_data, broken, other.",
            ["reason"],
            registry=registry,
        )
        make_series(self.skips, reason=SKIPS)
        self.hand_in_seconds = Histogram(
            "fairlead_feedback_hand_in_seconds",
            "Time in the store of a judgment that is handed in.",
            buckets=SECONDS,
            registry=registry,
        )
        self.tasks = Gauge(
            "fairlead_feedback_tasks",
            "Tasks of all projects by state: open, closed, withdrawn; gold questions excluded.",
            ["state"],
            registry=registry,
        )
        make_series(self.tasks, state=("open", "closed", "withdrawn"))
        self.leases_open = Gauge(
            "fairlead_feedback_leases_open", "Tasks in work, of all projects.", registry=registry
        )
        self.leases_expired = Gauge(
            "fairlead_feedback_leases_expired",
            "Leases that have ended and are neither handed in nor renewed.",
            registry=registry,
        )
        self.exchanges = Counter(
            "fairlead_feedback_exchanges_total",
            "Exchanges of the deployed policy that were handed in, by result: kept, not_drawn, duplicate, "
            "near_duplicate, over_user, over_key, failed.",
            ["result"],
            registry=registry,
        )
        make_series(self.exchanges, result=_EXCHANGES)
        self.snapshots = Counter(
            "fairlead_feedback_snapshots_total", "Snapshots that were asked for.", registry=registry
        )
        self.erasures_open = Gauge(
            "fairlead_feedback_erasures_open",
            "Erasures whose texts may still be in the files of the store.",
            registry=registry,
        )
        self.store_seconds = Histogram(
            "fairlead_feedback_store_seconds",
            "Time of a call to the store, by method.",
            ["what"],
            buckets=SECONDS,
            registry=registry,
        )

    def add_routes(self, routes: Collection[str]) -> None:
        """Begin the counts of the service's routes at 0; the times of each begin with its first request."""
        make_series(self.requests, route=routes, status=("200",))

    def record(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds, exemplar=tracing.exemplar())
