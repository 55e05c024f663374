"""Metrics of the batcher, the model services and the weights service."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from fairlead.metrics.buckets import LONG_SECONDS, SECONDS
from fairlead.metrics.series import LateGauge, ReadMetric, make_series

_SCORES = (
    -100.0,
    -50.0,
    -20.0,
    -10.0,
    -5.0,
    -3.0,
    -2.0,
    -1.0,
    -0.5,
    0.0,
    0.5,
    1.0,
    2.0,
    3.0,
    5.0,
    10.0,
    20.0,
    50.0,
    100.0,
)
FINISHES = ("stop", "length", "cancelled", "failed")
"""Why an answer ends."""


class BatcherMetrics:
    """The micro-batcher of reward and reference."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.queue_tokens = Gauge(
            "fairlead_batcher_queue_tokens", "Tokens waiting for the model.", registry=registry
        )
        self.wait_seconds = Histogram(
            "fairlead_batcher_wait_seconds",
            "Time of a sequence in the queue of the model.",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_tokens = Histogram(
            "fairlead_batcher_batch_tokens",
            "Tokens of a forward pass, without padding.",
            buckets=[2.0**power for power in range(4, 18)],
            registry=registry,
        )
        self.batch_fill_ratio = Histogram(
            "fairlead_batcher_batch_fill_ratio",
            "Tokens without padding ÷ computed tokens of a forward pass; above 1 where sequences share a "
            "prefix.",
            buckets=[*(step / 10 for step in range(1, 11)), 1.2, 1.5, 2.0, 3.0, 4.0],
            registry=registry,
        )
        self.sequences = Counter(
            "fairlead_batcher_sequences_total",
            "Sequences by result: scored, cancelled, expired, refused.",
            ["result"],
            registry=registry,
        )
        make_series(self.sequences, result=("scored", "cancelled", "expired", "refused"))


class RewardMetrics:
    """The reward service: model swaps, the canary, and computation saved by sharing prefixes."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.swaps = Counter(
            "fairlead_reward_swaps_total", "Times that the served model was replaced.", registry=registry
        )
        self.load_failures = Counter(
            "fairlead_reward_load_failures_total",
            "Models that could not be loaded or could not score; the served model did not change.",
            registry=registry,
        )
        self.canary_share = Gauge(
            "fairlead_reward_canary_share_ratio",
            "Share of the requests that the canary scores.",
            registry=registry,
        )
        self.requests = Counter(
            "fairlead_reward_requests_total",
            "Requests while there is a canary, by the model that scored them: current, canary.",
            ["model"],
            registry=registry,
        )
        make_series(self.requests, model=("current", "canary"))
        self._model: tuple[str, str] | None = None
        self.model_info = ReadMetric(
            "fairlead_reward_model_info",
            "1; the labels are the model that is served and its version.",
            ["model", "version"],
            lambda: {} if self._model is None else {self._model: 1.0},
            registry=registry,
        )
        self.score = Histogram(
            "fairlead_reward_score",
            "Scores of the served model, in its own unit; a drift shows as a shift between buckets.",
            buckets=_SCORES,
            registry=registry,
        )
        self.prefix_lookups = Counter(
            "fairlead_reward_prefix_lookups_total",
            "Sequences whose prefix was looked up in the cache, by result: hit, miss.",
            ["result"],
            registry=registry,
        )
        make_series(self.prefix_lookups, result=("hit", "miss"))
        self.prefix_tokens = Counter(
            "fairlead_reward_prefix_tokens_total",
            "Tokens that were not computed because their keys and values were cached.",
            registry=registry,
        )
        self.prefix_bytes = Gauge(
            "fairlead_reward_prefix_bytes", "Memory of the cached keys and values.", registry=registry
        )
        self.shared_tokens = Counter(
            "fairlead_reward_shared_tokens_total",
            "Tokens that were not computed because another sequence of the batch has the same prefix.",
            registry=registry,
        )

    def observe_scores(self, scores: Iterable[float]) -> None:
        """Count scores that were returned."""
        for score in scores:
            self.score.observe(score)

    def set_model(self, model: str, version: str) -> None:
        """Set the model that is served."""
        self._model = (model, version)


class PolicyMetrics:
    """The policy service."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.tokens = Counter("fairlead_policy_tokens_total", "Tokens generated.", registry=registry)
        self.steps = Counter("fairlead_policy_steps_total", "Decoding steps.", registry=registry)
        self.prompt_tokens = Counter(
            "fairlead_policy_prompt_tokens_total",
            "Tokens of prompts read; the answers of a group share one prompt.",
            registry=registry,
        )
        self.finished = Counter(
            "fairlead_policy_finished_total",
            "Answers by the reason of their end: stop (a stop token or string), length, cancelled by the "
            "caller, failed (such as a deadline that passed).",
            ["reason"],
            registry=registry,
        )
        make_series(self.finished, reason=FINISHES)
        self.first_token_seconds = Histogram(
            "fairlead_policy_first_token_seconds",
            "Time from the arrival of a request to its first token, the wait for a slot included.",
            buckets=LONG_SECONDS,
            registry=registry,
        )
        self.slots = Gauge(
            "fairlead_policy_slots", "Sequences that can be decoded at the same time.", registry=registry
        )
        self.cache_bytes = LateGauge(
            "fairlead_policy_cache_bytes",
            "Memory of the keys and values of the sequences being decoded; no series with vLLM.",
            registry=registry,
        )
        self.slots_used = Gauge(
            "fairlead_policy_slots_used", "Sequences being decoded now.", registry=registry
        )
        self.waiting = Gauge(
            "fairlead_policy_waiting_sequences", "Sequences waiting for a slot.", registry=registry
        )
        # A replica that still loads has no version: 0 would look like the oldest.
        self.weight_incarnation = LateGauge(
            "fairlead_policy_weight_incarnation",
            "Incarnation of the weights in use; no series before the first.",
            registry=registry,
        )
        self.weight_update = LateGauge(
            "fairlead_policy_weight_update",
            "Number of the update that made the weights in use; no series before the first.",
            registry=registry,
        )
        self.swaps = Counter("fairlead_policy_swaps_total", "Weight swaps.", registry=registry)
        self.swap_seconds = Histogram(
            "fairlead_policy_swap_seconds",
            "Pause in decoding for a weight swap.",
            buckets=SECONDS,
            registry=registry,
        )
        self.fetch_failures = Counter(
            "fairlead_policy_fetch_failures_total",
            "Weight versions that could not be fetched or verified.",
            registry=registry,
        )


SOURCES = ("origin", "peer")
"""Where a replica fetches weights from."""


class WeightsMetrics:
    """The weight store over gRPC: the weights service, and policy replicas that fetch and relay weights."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.fetched_bytes = Counter(
            "fairlead_weights_fetched_bytes_total",
            "Bytes of shards received, by source: origin, peer.",
            ["source"],
            registry=registry,
        )
        make_series(self.fetched_bytes, source=SOURCES)
        self.fetch_seconds = Histogram(
            "fairlead_weights_fetch_seconds",
            "Time from the first request for a source of a version until all of the version was verified.",
            buckets=(*SECONDS, 300.0, 600.0, 1800.0),
            registry=registry,
        )
        self.verification_failures = Counter(
            "fairlead_weights_verification_failures_total",
            "Pieces that did not match their digest, by source: origin, peer.",
            ["source"],
            registry=registry,
        )
        make_series(self.verification_failures, source=SOURCES)
        self.source_failures = Counter(
            "fairlead_weights_source_failures_total",
            "Sources that failed and were replaced, by source (origin, peer) and reason: broken, corrupt.",
            ["source", "reason"],
            registry=registry,
        )
        make_series(self.source_failures, source=SOURCES, reason=("broken", "corrupt"))
        self.sent_bytes = Counter(
            "fairlead_weights_sent_bytes_total", "Bytes of shards sent to replicas.", registry=registry
        )
        self.relay_connections = Gauge(
            "fairlead_weights_relay_connections",
            "Replicas that fetch from this process now.",
            registry=registry,
        )
