"""Metrics of every process, of servers and their access control, and of the gateway."""

from __future__ import annotations

from functools import partial

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from fairlead import watchdog
from fairlead.metrics.buckets import SECONDS


class ProcessMetrics:
    """Every process."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.waiting_seconds = Gauge(
            "fairlead_process_waiting_seconds",
            "Age of the longest wait of each kind: " + ", ".join(watchdog.KINDS) + "; 0 if there is none.",
            ["what"],
            registry=registry,
        )
        for kind in watchdog.KINDS:
            # Read from the watchdog at every scrape.
            self.waiting_seconds.labels(what=kind).set_function(partial(watchdog.PROCESS.seconds, kind))


class ServerMetrics:
    """Every gRPC server."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.started = Counter(
            "grpc_server_started_total",
            "RPCs started. The requests of a GenerateBatch count as calls of Generate, too.",
            ["grpc_service", "grpc_method"],
            registry=registry,
        )
        self.handled = Counter(
            "grpc_server_handled_total",
            "RPCs completed, by status.",
            ["grpc_service", "grpc_method", "grpc_code"],
            registry=registry,
        )
        self.received = Counter(
            "grpc_server_msg_received_total",
            "Messages received on streams.",
            ["grpc_service", "grpc_method"],
            registry=registry,
        )
        self.sent = Counter(
            "grpc_server_msg_sent_total",
            "Messages sent on streams.",
            ["grpc_service", "grpc_method"],
            registry=registry,
        )
        self.seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from start to completion of an RPC.",
            ["grpc_service", "grpc_method"],
            buckets=SECONDS,
            registry=registry,
        )


class AccessMetrics:
    """Access control at the edge of every service: API keys, rates and quotas."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.refusals = Counter(
            "fairlead_access_refusals_total",
            "Requests refused, by reason: missing, wrong, revoked, expired, scope, requests, tokens, quota, "
            "request_tokens, in_flight.",
            ["reason"],
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


class TlsMetrics:
    """The certificate of a server."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.failures = Counter(
            "fairlead_tls_reload_failures_total",
            "Changes of TLS files that could not be loaded; the previous ones stayed in use.",
            registry=registry,
        )


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
        self.seconds = Histogram(
            "fairlead_gateway_request_seconds",
            "Time from the headers of a request to the end of its response.",
            ["dialect"],
            buckets=SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "fairlead_gateway_in_flight_requests", "Requests being answered.", registry=registry
        )


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
        self.waiting = Gauge(
            "fairlead_gateway_exchanges_waiting", "Exchanges that wait to be sent.", registry=registry
        )
