"""Metrics of the training loop: rollout workers and the trainer."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from fairlead.metrics.buckets import SECONDS

PHASES = ("start", "wait", "prepare", "train", "publish", "checkpoint", "evaluate", "done")
"""Phases of the trainer; `fairlead_trainer_phase` is 1 for exactly one of them."""


class WorkerMetrics:
    """The rollout worker."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.in_flight = Gauge("fairlead_worker_in_flight_tasks", "Tasks in progress.", registry=registry)
        self.finished = Counter(
            "fairlead_worker_tasks_total",
            "Tasks by result: finished, dead_letter, failed, released, lost, duplicate.",
            ["result"],
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "fairlead_worker_stage_seconds",
            "Time of a task in a stage: generate, score, reference, finish.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )


class TrainerMetrics:
    """The trainer."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.phase = Gauge(
            "fairlead_trainer_phase", "1 for the current phase of the trainer.", ["phase"], registry=registry
        )
        self.update = Gauge(
            "fairlead_trainer_update", "Number of updates of the newest weights.", registry=registry
        )
        self.incarnation = Gauge(
            "fairlead_trainer_incarnation", "Incarnation of the trainer.", registry=registry
        )
        self.tasks = Counter(
            "fairlead_trainer_tasks_total",
            "Tasks by event: dispatched, trained, dead_letter, no_signal, stale, repeated, resent.",
            ["event"],
            registry=registry,
        )
        self.tokens = Counter(
            "fairlead_trainer_tokens_total", "Response tokens trained on.", registry=registry
        )
        self.statistic = Gauge(
            "fairlead_trainer_statistic",
            "Statistics of the last update, named as in metrics_ppo.jsonl.",
            ["name"],
            registry=registry,
        )
        self.guard = Gauge(
            "fairlead_trainer_guard",
            "Level of a guard against reward hacking: 0 quiet, 1 warn, 2 stop; its value is a statistic.",
            ["signal"],
            registry=registry,
        )
        self.staleness = Histogram(
            "fairlead_trainer_staleness_updates",
            "Staleness of rollouts in updates: in_flight during generation, in_queue after it.",
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
            "Estimated payload of the outcomes in the queue, from the mean of those read.",
            registry=registry,
        )
        self.queue_bound_bytes = Gauge(
            "fairlead_trainer_queue_bound_bytes",
            "Upper bound of the queue's memory: size of a rollout times the number that staleness allows.",
            registry=registry,
        )

    def set_phase(self, phase: str) -> None:
        """Set one phase to 1 and every other to 0."""
        for name in PHASES:
            self.phase.labels(phase=name).set(name == phase)
