"""Every metric name of the project.

A process makes the areas that it reports (`Server(...)`, `Trainer(...)`), once; what it does not make does
not appear on its page. Names are `fairlead_<area>_<what>_<unit>`, but for the gRPC ones, which keep the
names of the ecosystem. docs/metrics.md is compared with this file by a test.
"""

from __future__ import annotations

from functools import partial

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from fairlead import watchdog

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)

PHASES = ("start", "wait", "prepare", "train", "publish", "checkpoint", "evaluate", "done")
"""What the trainer can be doing; `fairlead_trainer_phase` is 1 for exactly one of them."""


class Process:
    """Every process."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.waiting_seconds = Gauge(
            "fairlead_process_waiting_seconds",
            "Age of the longest wait of each kind: " + ", ".join(watchdog.KINDS) + "; 0 where there is none.",
            ["what"],
            registry=registry,
        )
        for kind in watchdog.KINDS:
            # Read from the watchdog whenever the page is asked for.
            self.waiting_seconds.labels(what=kind).set_function(partial(watchdog.PROCESS.seconds, kind))


class Server:
    """Every gRPC server."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.started = Counter(
            "grpc_server_started_total",
            "RPCs started.",
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
            buckets=_SECONDS,
            registry=registry,
        )


class Access:
    """Who may call: keys, rates and quotas, at the edge of every service."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.refusals = Counter(
            "fairlead_access_refusals_total",
            "Requests refused: missing, wrong, revoked, expired, scope, requests, tokens, quota, "
            "request_tokens, in_flight.",
            ["reason"],
            registry=registry,
        )
        self.key_file_failures = Counter(
            "fairlead_access_key_file_failures_total",
            "Changes of the file of keys that could not be read; the keys stayed as they were.",
            registry=registry,
        )
        self.redis_failures = Counter(
            "fairlead_access_redis_failures_total",
            "Requests that Redis did not count; the replica counted them by itself.",
            registry=registry,
        )


class Tls:
    """The certificate of a server."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.failures = Counter(
            "fairlead_tls_reload_failures_total",
            "Changes of certificate, key or authorities that could not be taken; what was there stayed.",
            registry=registry,
        )


class Batcher:
    """The micro-batcher of reward and reference."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.queue_tokens = Gauge(
            "fairlead_batcher_queue_tokens", "Tokens waiting for the model.", registry=registry
        )
        self.wait_seconds = Histogram(
            "fairlead_batcher_wait_seconds",
            "Time a sequence waited for the model.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_tokens = Histogram(
            "fairlead_batcher_batch_tokens",
            "Real tokens of a forward pass.",
            buckets=[2.0**power for power in range(4, 18)],
            registry=registry,
        )
        self.batch_fill_ratio = Histogram(
            "fairlead_batcher_batch_fill_ratio",
            "Real tokens ÷ computed tokens of a forward pass.",
            buckets=[step / 10 for step in range(1, 11)],
            registry=registry,
        )
        self.sequences = Counter(
            "fairlead_batcher_sequences_total",
            "Sequences by what became of them: scored, cancelled, expired, refused.",
            ["result"],
            registry=registry,
        )


class Reward:
    """The reward service: which model scores, and what need not be computed twice."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.swaps = Counter(
            "fairlead_reward_swaps_total", "Times that another model took over.", registry=registry
        )
        self.load_failures = Counter(
            "fairlead_reward_load_failures_total",
            "Models that could not be loaded or could not score; what was served stayed.",
            registry=registry,
        )
        self.canary_share = Gauge(
            "fairlead_reward_canary_share_ratio",
            "Share of the traffic that the canary scores.",
            registry=registry,
        )
        self.requests = Counter(
            "fairlead_reward_requests_total",
            "Requests while there is a canary, by who scored them: current, canary.",
            ["model"],
            registry=registry,
        )
        self.prefix_lookups = Counter(
            "fairlead_reward_prefix_lookups_total",
            "Sequences whose beginning was looked for among those kept: hit, miss.",
            ["result"],
            registry=registry,
        )
        self.prefix_tokens = Counter(
            "fairlead_reward_prefix_tokens_total",
            "Tokens that were not computed again as their keys and values were kept.",
            registry=registry,
        )
        self.prefix_bytes = Gauge(
            "fairlead_reward_prefix_bytes", "Memory of the keys and values kept.", registry=registry
        )
        self.shared_tokens = Counter(
            "fairlead_reward_shared_tokens_total",
            "Tokens that were computed once for several sequences of a batch, each time but the first.",
            registry=registry,
        )


class Policy:
    """The policy service."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.tokens = Counter("fairlead_policy_tokens_total", "Tokens generated.", registry=registry)
        self.steps = Counter("fairlead_policy_steps_total", "Decoding steps.", registry=registry)
        self.slots_used = Gauge(
            "fairlead_policy_slots_used", "Sequences being decoded now.", registry=registry
        )
        self.waiting = Gauge(
            "fairlead_policy_waiting_sequences", "Sequences waiting for a slot.", registry=registry
        )
        self.weight_incarnation = Gauge(
            "fairlead_policy_weight_incarnation", "Incarnation of the weights in use.", registry=registry
        )
        self.weight_update = Gauge(
            "fairlead_policy_weight_update", "Update of the weights in use.", registry=registry
        )
        self.swaps = Counter("fairlead_policy_swaps_total", "Weight swaps.", registry=registry)
        self.swap_seconds = Histogram(
            "fairlead_policy_swap_seconds",
            "Pause of decoding for a weight swap.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.fetch_failures = Counter(
            "fairlead_policy_fetch_failures_total",
            "Weight versions that could not be fetched or verified.",
            registry=registry,
        )


class Weights:
    """The weight store over gRPC: the weights service, and every policy replica that fetches and relays."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.fetched_bytes = Counter(
            "fairlead_weights_fetched_bytes_total",
            "Bytes of shards received, by source: origin, peer.",
            ["source"],
            registry=registry,
        )
        self.fetch_seconds = Histogram(
            "fairlead_weights_fetch_seconds",
            "Time from the first question for a source of a version until all of it was verified.",
            buckets=(*_SECONDS, 300.0, 600.0, 1800.0),
            registry=registry,
        )
        self.verification_failures = Counter(
            "fairlead_weights_verification_failures_total",
            "Pieces that did not match their SHA-256, by source: origin, peer.",
            ["source"],
            registry=registry,
        )
        self.source_failures = Counter(
            "fairlead_weights_source_failures_total",
            "Sources that were left for another, by source (origin, peer) and reason: broken, corrupt.",
            ["source", "reason"],
            registry=registry,
        )
        self.sent_bytes = Counter(
            "fairlead_weights_sent_bytes_total", "Bytes of shards sent to replicas.", registry=registry
        )
        self.relay_connections = Gauge(
            "fairlead_weights_relay_connections", "Replicas that fetch from here now.", registry=registry
        )


class Worker:
    """The rollout worker."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.in_flight = Gauge("fairlead_worker_in_flight_tasks", "Tasks in hand.", registry=registry)
        self.finished = Counter(
            "fairlead_worker_tasks_total",
            "Tasks by what became of them: finished, dead_letter, failed, released, lost, duplicate.",
            ["result"],
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "fairlead_worker_stage_seconds",
            "Time of a task in a stage: generate, score, reference, finish.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )


class Gateway:
    """The HTTP gateway."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.requests = Counter(
            "fairlead_gateway_requests_total",
            "Requests by dialect (fairlead, openrlhf, vllm, open_inference, openai, other) and HTTP status; "
            "499: the caller left.",
            ["dialect", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "fairlead_gateway_request_seconds",
            "Time from the headers of a request to the end of its response.",
            ["dialect"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "fairlead_gateway_in_flight_requests", "Requests being answered.", registry=registry
        )


class Trainer:
    """The trainer."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.phase = Gauge(
            "fairlead_trainer_phase", "1 for what the trainer does now.", ["phase"], registry=registry
        )
        self.update = Gauge(
            "fairlead_trainer_update", "Updates behind the newest weights.", registry=registry
        )
        self.incarnation = Gauge(
            "fairlead_trainer_incarnation", "Incarnation of the trainer.", registry=registry
        )
        self.tasks = Counter(
            "fairlead_trainer_tasks_total",
            "Tasks by event: dispatched, trained, dead_letter, stale, repeated, resent.",
            ["event"],
            registry=registry,
        )
        self.tokens = Counter(
            "fairlead_trainer_tokens_total", "Response tokens trained on.", registry=registry
        )
        self.statistic = Gauge(
            "fairlead_trainer_statistic",
            "Figures of the last update, named as in metrics_ppo.jsonl.",
            ["name"],
            registry=registry,
        )
        self.guard = Gauge(
            "fairlead_trainer_guard",
            "Level of a signal of reward hacking: 0 quiet, 1 warn, 2 stop; its value is a statistic.",
            ["signal"],
            registry=registry,
        )
        self.staleness = Histogram(
            "fairlead_trainer_staleness_updates",
            "Updates that rollouts lagged behind: in_flight while they were made, in_queue after that.",
            ["part"],
            buckets=(0, 1, 2, 3, 4, 6, 8, 12, 16),
            registry=registry,
        )
        self.queue = Gauge(
            "fairlead_trainer_queue_entries",
            "Entries of the queue: waiting, in_flight, outcomes.",
            ["what"],
            registry=registry,
        )
        self.queue_memory_bytes = Gauge(
            "fairlead_trainer_queue_memory_bytes", "Memory that Redis uses.", registry=registry
        )
        self.queue_outcome_bytes = Gauge(
            "fairlead_trainer_queue_outcome_bytes",
            "Payload of the outcomes in the queue, by the mean of those read.",
            registry=registry,
        )
        self.queue_bound_bytes = Gauge(
            "fairlead_trainer_queue_bound_bytes",
            "What the queue can take at most: the size of a rollout times what staleness allows.",
            registry=registry,
        )

    def set_phase(self, phase: str) -> None:
        """Makes one phase 1 and every other 0."""
        for name in PHASES:
            self.phase.labels(phase=name).set(name == phase)


AREAS = (Process, Server, Access, Tls, Batcher, Reward, Policy, Weights, Worker, Gateway, Trainer)
"""Every area, for docs/metrics.md."""
