"""Metrics of gRPC servers and of their access control."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from fairlead.metrics.buckets import LONG_SECONDS
from fairlead.metrics.series import ReadMetric, make_series
from fairlead.rpc.call_counts import COMMON_CODES
from fairlead.rpc.call_types import call_type

LABELS = ("grpc_type", "grpc_service", "grpc_method")
"""Labels of a method, with the names that other gRPC servers use."""


class ServerMetrics:
    """Every gRPC server."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.started = Counter(
            "grpc_server_started_total",
            "RPCs started. The requests of a GenerateBatch count as calls of Generate, too.",
            LABELS,
            registry=registry,
        )
        self.handled = Counter(
            "grpc_server_handled_total",
            "RPCs completed, by status.",
            [*LABELS, "grpc_code"],
            registry=registry,
        )
        self.received = Counter(
            "grpc_server_msg_received_total",
            "Messages received on streams.",
            LABELS,
            registry=registry,
        )
        self.sent = Counter(
            "grpc_server_msg_sent_total",
            "Messages sent on streams.",
            LABELS,
            registry=registry,
        )
        self.seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from start to completion of an RPC.",
            LABELS,
            buckets=LONG_SECONDS,
            registry=registry,
        )

    def add_service(self, service: str, methods: Collection[str]) -> None:
        """Begin the counts of a service at 0.

        Args:
            service: full name, such as `fairlead.v1.PolicyService`.
            methods: names of its methods.
        """
        for method in methods:
            known = dict(zip(LABELS, ((label,) for label in self.labels(service, method)), strict=True))
            for metric in (self.started, self.received, self.sent, self.seconds):
                make_series(metric, **known)
            make_series(self.handled, **known, grpc_code=COMMON_CODES)

    def labels(self, service: str, method: str) -> tuple[str, str, str]:
        """Return the labels of a method, in the order of LABELS."""
        return call_type(service, method), service, method


REFUSALS = (
    "missing",
    "wrong",
    "revoked",
    "expired",
    "scope",
    "requests",
    "tokens",
    "quota",
    "request_tokens",
    "in_flight",
)
"""Why a request is refused at the edge."""
_OF_KEYS = REFUSALS[2:]
"""Refusals of a known key; the others have no key."""
MAX_KEYS = 200
"""Keys with series of their own, the first of the file; the others share the label `other`."""
OTHER_KEY = "other"


class AccessMetrics:
    """Access control at the edge of every service: API keys, rates and quotas."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._keys: dict[str, None] = {}
        self._quotas: Callable[[], Mapping[str, tuple[int, int]]] = dict
        self.refusals = Counter(
            "fairlead_access_refusals_total",
            "Requests refused, by reason: missing, wrong, revoked, expired, scope, requests, tokens, quota, "
            "request_tokens, in_flight; and by the id of the key: `other` after the first 200 of the file, "
            "empty for callers without a known key.",
            ["reason", "key"],
            registry=registry,
        )
        make_series(self.refusals, reason=REFUSALS, key=("",))
        self.tokens = Counter(
            "fairlead_access_tokens_total",
            "Tokens of requests that were accepted, by the id of the key.",
            ["key"],
            registry=registry,
        )
        make_series(self.tokens, key=("",))
        self.quota_tokens = ReadMetric(
            "fairlead_access_quota_tokens",
            "Tokens of today (UTC) of each key with a daily quota, by kind: used, limit. With Redis, used is "
            "what it reported last to this replica.",
            ["key", "kind"],
            self._read_quotas,
            registry=registry,
        )
        self.key_file_failures = Counter(
            "fairlead_access_key_file_failures_total",
            "Changes of the key file that could not be read; the previous keys stayed in use.",
            registry=registry,
        )
        self.redis_failures = Counter(
            "fairlead_access_redis_failures_total",
            "Requests that could not be counted in Redis; the replica counted them itself.",
            registry=registry,
        )

    def set_keys(self, keys: Collection[str]) -> None:
        """Begin the counts of the keys of the file at 0. Earlier keys keep theirs."""
        for key in keys:
            if len(self._keys) >= MAX_KEYS:
                break
            self._keys.setdefault(key)
        labels = [*self._keys, *([OTHER_KEY] if len(keys) > len(self._keys) else [])]
        make_series(self.refusals, reason=_OF_KEYS, key=labels)
        make_series(self.tokens, key=labels)

    def label(self, key: str) -> str:
        """Return the label of a key id: itself, `other`, or empty for none."""
        return key if not key or key in self._keys else OTHER_KEY

    def refuse(self, reason: str, key: str = "") -> None:
        """Count a refused request."""
        self.refusals.labels(reason=reason, key=self.label(key)).inc()

    def count_tokens(self, tokens: int, key: str = "") -> None:
        """Count tokens of a request; a refund is not counted, as a counter only grows."""
        if tokens > 0:
            self.tokens.labels(key=self.label(key)).inc(tokens)

    def set_quotas(self, quotas: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        """Set where tokens used and limit of each key are read, by its id."""
        self._quotas = quotas

    def _read_quotas(self) -> dict[tuple[str, ...], float]:
        found: dict[tuple[str, ...], float] = {}
        for key, numbers in self._quotas().items():
            for kind, value in zip(("used", "limit"), numbers, strict=True):
                labels = (self.label(key), kind)
                found[labels] = found.get(labels, 0.0) + value
        return found
