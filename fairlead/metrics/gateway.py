"""Metrics of the HTTP gateway."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from fairlead import tracing
from fairlead.metrics.buckets import LONG_SECONDS
from fairlead.metrics.series import make_series

DIALECTS = ("fairlead", "openrlhf", "vllm", "sglang", "open_inference", "openai", "other")
"""Formats of requests; `other` is everything else, such as probes."""
_STATUSES = ("200", "400", "401", "403", "404", "413", "422", "429", "499", "500", "503", "504")


class GatewayMetrics:
    """The HTTP gateway."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.requests = Counter(
            "fairlead_gateway_requests_total",
            "Requests by dialect (fairlead, openrlhf, vllm, sglang, open_inference, openai, other) and HTTP "
            "status; 499: the caller disconnected.",
            ["dialect", "status"],
            registry=registry,
        )
        make_series(self.requests, dialect=DIALECTS, status=_STATUSES)
        self.seconds = Histogram(
            "fairlead_gateway_request_seconds",
            "Time from the headers of a request to the end of its response, by class of the status: 2xx, "
            "4xx, 5xx.",
            ["dialect", "status"],
            buckets=LONG_SECONDS,
            registry=registry,
        )
        make_series(self.seconds, dialect=DIALECTS, status=("2xx", "4xx", "5xx"))
        self.in_flight = Gauge(
            "fairlead_gateway_in_flight_requests", "Requests being answered.", registry=registry
        )

    def record(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route, f"{status // 100}xx").observe(seconds, exemplar=tracing.exemplar())


class CollectMetrics:
    """Exchanges that a gateway sends to the feedback service."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.sent = Counter(
            "fairlead_gateway_exchanges_sent_total",
            "Exchanges that the feedback service has taken.",
            registry=registry,
        )
        self.dropped = Counter(
            "fairlead_gateway_exchanges_dropped_total",
            "Exchanges that were not sent, by reason: queue_full, too_large, refused, stopped.",
            ["reason"],
            registry=registry,
        )
        make_series(self.dropped, reason=("queue_full", "too_large", "refused", "stopped"))
        self.waiting = Gauge(
            "fairlead_gateway_exchanges_waiting", "Exchanges that wait to be sent.", registry=registry
        )
