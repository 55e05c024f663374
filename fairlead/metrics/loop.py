"""Metrics of the training loop: rollout workers, the queue, and the stages of the trainer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from fairlead import tracing
from fairlead.metrics.buckets import AGES, SECONDS
from fairlead.metrics.series import LateGauge, PhaseClock, ReadMetric, make_series
from fairlead.metrics.statistics import SIGNALS

PHASES = ("start", "wait", "prepare", "train", "publish", "checkpoint", "evaluate", "done")
"""Phases of the trainer; `fairlead_trainer_phase` is 1 for exactly one of them."""
STAGE_PHASES = ("start", "prepare", "train", "evaluate", "publish", "done")
"""Phases of the stages without services."""
DEAD_LETTERS = (
    "prompt_empty",
    "prompt_too_long",
    "prompt_token_unknown",
    "prompt_without_text",
    *(f"refused_by_{service}" for service in ("policy", "reward", "reference")),
    *(f"{service}_not_finite" for service in ("reward", "policy", "reference")),
    "completion_malformed",
    "answer_malformed",
    "service_error",
    *(f"{service}_died" for service in ("policy", "reward", "reference")),
    "worker_error",
    "too_many_deliveries",
    "undecodable_task",
    "malformed_rollout",
)
"""Reasons of dead letters; docs/queue-protocol.md explains them."""
QUEUE_OPERATIONS = {
    "trainer": ("connect", "read", "dispatch", "delete", "snapshot", "stats", "fence"),
    "worker": ("connect", "claim", "renew", "finish", "fail", "release"),
}
"""What a trainer and a worker ask of the queue."""


class ProgressMetrics(Protocol):
    """What the tracker of a stage reports."""

    def set_phase(self, phase: str, now: float) -> None:
        """Enter a phase at a Unix time; an empty name ends the last one."""
        ...

    def set_progress(self, step: int, total: int) -> None:
        """Set the steps done, and all steps."""
        ...

    def set_statistics(self, values: Mapping[str, float]) -> None:
        """Set the statistics of a step that has just finished."""
        ...


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
        results = ("finished", "dead_letter", "failed", "released", "lost", "duplicate")
        make_series(self.finished, result=results)
        self.stage_seconds = Histogram(
            "fairlead_worker_stage_seconds",
            "Time in seconds of a task in a stage: generate, score, reference, finish.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        make_series(self.stage_seconds, stage=("generate", "score", "reference", "finish"))
        self.queue_errors = _queue_errors("worker", registry)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the time of a task in a stage, with its trace as the exemplar."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            seconds = self.stage_seconds.labels(stage=name)
            seconds.observe(time.perf_counter() - begun, exemplar=tracing.exemplar())


class TrainerMetrics:
    """The trainer of PPO."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.phase = Gauge(
            "fairlead_trainer_phase", "1 for the current phase of the trainer.", ["phase"], registry=registry
        )
        make_series(self.phase, phase=PHASES)
        self._clock = PhaseClock(PHASES)
        self.phase_seconds = ReadMetric(
            "fairlead_trainer_phase_seconds_total",
            "Seconds spent in each phase, the current one included.",
            ["phase"],
            lambda: {(phase,): seconds for phase, seconds in self._clock.read().items()},
            registry=registry,
        )
        self.update = Gauge(
            "fairlead_trainer_update", "Number of updates of the newest weights.", registry=registry
        )
        self.target_updates = Gauge(
            "fairlead_trainer_target_updates",
            "Number of updates at which the run is finished.",
            registry=registry,
        )
        self.last_update = LateGauge(
            "fairlead_trainer_last_update_timestamp_seconds",
            "Unix time of the last update, or of the start of the trainer before its first; no series before "
            "that.",
            registry=registry,
        )
        self.incarnation = Gauge(
            "fairlead_trainer_incarnation", "Incarnation of the trainer.", registry=registry
        )
        self.tokens = Counter(
            "fairlead_trainer_tokens_total", "Response tokens trained on.", registry=registry
        )
        self.statistic = Gauge(
            "fairlead_trainer_statistic",
            "Statistics of the last update, named as in metrics_ppo.jsonl; see the table of statistics.",
            ["name"],
            registry=registry,
        )
        self.mfu = LateGauge(
            "fairlead_trainer_mfu_ratio",
            "Share of the peak FLOP/s of the GPUs that the last update used in training, at 6 FLOPs a "
            "parameter and token; no series without a GPU of a known peak.",
            registry=registry,
        )
        self._add_guard(registry)
        self._add_tasks(registry)
        self._add_queue(registry)

    def set_phase(self, phase: str, now: float) -> None:
        """Set one phase to 1 and every other to 0; an empty name only ends the time of the last one."""
        self._clock.enter(phase, now)
        for name in PHASES if phase else ():
            self.phase.labels(phase=name).set(name == phase)

    def set_progress(self, step: int, total: int) -> None:
        """Set the target and the time of the last update; `update` is set when weights are published."""
        self.target_updates.set(total)
        self.last_update.set(time.time())

    def set_statistics(self, values: Mapping[str, float]) -> None:
        """Set the statistics of an update that has just finished."""
        for name, value in values.items():
            self.statistic.labels(name=name).set(value)

    def count_queue_error(self, operation: str) -> None:
        """Count a call to the queue that failed."""
        self.queue_errors.labels(operation=operation).inc()

    def set_queue(self, entries: Mapping[str, float], *, memory_bytes: float, limit_bytes: float) -> None:
        """Set the sizes of the queue; NaN for what is not known.

        Args:
            entries: numbers of entries: `waiting`, `in_flight`, `outcomes`.
            memory_bytes: memory that Redis uses.
            limit_bytes: memory that Redis may use; 0 for no limit.
        """
        for what, number in entries.items():
            self.queue.labels(what=what).set(number)
        self.queue_memory_bytes.set(memory_bytes)
        self.queue_memory_limit_bytes.set(limit_bytes)

    def _add_guard(self, registry: CollectorRegistry) -> None:
        self.guard = Gauge(
            "fairlead_trainer_guard",
            "Level of a guard against reward hacking: 0 quiet, 1 warn, 2 stop; its value is a statistic.",
            ["signal"],
            registry=registry,
        )
        make_series(self.guard, signal=SIGNALS)
        self.guard_crossings = Counter(
            "fairlead_trainer_guard_crossings_total",
            "Times that a signal of the guard crossed a limit, by level: warn, stop.",
            ["signal", "level"],
            registry=registry,
        )
        make_series(self.guard_crossings, signal=SIGNALS, level=("warn", "stop"))

    def _add_tasks(self, registry: CollectorRegistry) -> None:
        self.tasks = Counter(
            "fairlead_trainer_tasks_total",
            "Tasks by event: dispatched, trained, dead_letter, no_signal, stale, repeated, resent.",
            ["event"],
            registry=registry,
        )
        events = ("dispatched", "trained", "dead_letter", "no_signal", "stale", "repeated", "resent")
        make_series(self.tasks, event=events)
        self.dead_letters = Counter(
            "fairlead_trainer_dead_letters_total",
            "Tasks that can never succeed, by the reason in docs/queue-protocol.md.",
            ["reason"],
            registry=registry,
        )
        make_series(self.dead_letters, reason=DEAD_LETTERS)
        self.rollout_age_seconds = Histogram(
            "fairlead_trainer_rollout_age_seconds",
            "Time from the dispatch of a task to the update that trained on it.",
            buckets=AGES,
            registry=registry,
        )
        self.staleness = Histogram(
            "fairlead_trainer_staleness_updates",
            "Staleness of rollouts in updates: in_flight during generation, in_queue after it.",
            ["part"],
            buckets=(0, 1, 2, 3, 4, 6, 8, 12, 16),
            registry=registry,
        )
        make_series(self.staleness, part=("in_flight", "in_queue"))

    def _add_queue(self, registry: CollectorRegistry) -> None:
        self.queue = Gauge(
            "fairlead_trainer_queue_entries",
            "Entries of the queue: waiting, in_flight, outcomes. Sampled every few seconds; NaN while Redis "
            "does not answer.",
            ["what"],
            registry=registry,
        )
        self.queue_memory_bytes = LateGauge(
            "fairlead_trainer_queue_memory_bytes",
            "Memory that Redis uses; NaN while it does not answer.",
            registry=registry,
        )
        self.queue_memory_limit_bytes = LateGauge(
            "fairlead_trainer_queue_memory_limit_bytes",
            "Memory that Redis may use (maxmemory); 0 if it has no limit.",
            registry=registry,
        )
        self.queue_outcome_bytes = LateGauge(
            "fairlead_trainer_queue_outcome_bytes",
            "Estimated payload of the outcomes in the queue, from the mean of those read.",
            registry=registry,
        )
        self.queue_errors = _queue_errors("trainer", registry)
        self.queue_bound_bytes = LateGauge(
            "fairlead_trainer_queue_bound_bytes",
            "Upper bound of the queue's memory: size of a rollout times the number that staleness allows.",
            registry=registry,
        )


class StageMetrics:
    """The stages without services: SFT, the reward model, preferences."""

    def __init__(self, stage: str = "sft", registry: CollectorRegistry = REGISTRY) -> None:
        """
        Args:
            stage: `sft`, `reward_model` or `preference`.
            registry: gets the metrics.
        """
        self._stage = stage
        self.step = Gauge("fairlead_stage_step", "Optimizer steps done.", ["stage"], registry=registry)
        self.total_steps = Gauge(
            "fairlead_stage_total_steps", "Optimizer steps of the whole stage.", ["stage"], registry=registry
        )
        for gauge in (self.step, self.total_steps):
            make_series(gauge, stage=(stage,))
        self._last_step: float | None = None
        self.last_step = ReadMetric(
            "fairlead_stage_last_step_timestamp_seconds",
            "Unix time of the last step, or of the start of the stage before its first; no series before.",
            ["stage"],
            lambda: {} if self._last_step is None else {(stage,): self._last_step},
            registry=registry,
        )
        self.figure = Gauge(
            "fairlead_stage_figure",
            "Statistics of the last step, or held-out ones of the last epoch, named as in "
            "metrics_<stage>.jsonl; see the table of statistics.",
            ["stage", "name"],
            registry=registry,
        )
        self.phase = Gauge(
            "fairlead_stage_phase",
            "1 for the current phase of the stage.",
            ["stage", "phase"],
            registry=registry,
        )
        self._clock = PhaseClock(STAGE_PHASES)
        make_series(self.phase, stage=(stage,), phase=STAGE_PHASES)
        self.phase_seconds = ReadMetric(
            "fairlead_stage_phase_seconds_total",
            "Seconds spent in each phase, the current one included.",
            ["stage", "phase"],
            lambda: {(stage, phase): seconds for phase, seconds in self._clock.read().items()},
            registry=registry,
        )

    def set_phase(self, phase: str, now: float) -> None:
        """Set one phase to 1 and every other to 0; an empty name only ends the time of the last one."""
        self._clock.enter(phase, now)
        for name in STAGE_PHASES if phase else ():
            self.phase.labels(stage=self._stage, phase=name).set(name == phase)

    def set_progress(self, step: int, total: int) -> None:
        """Set the steps done, and all steps."""
        self.step.labels(stage=self._stage).set(step)
        self.total_steps.labels(stage=self._stage).set(total)
        self._last_step = time.time()

    def set_statistics(self, values: Mapping[str, float]) -> None:
        """Set the statistics of a step."""
        for name, value in values.items():
            self.figure.labels(stage=self._stage, name=name).set(value)


def _queue_errors(side: str, registry: CollectorRegistry) -> Counter:
    counter = Counter(
        "fairlead_queue_errors_total",
        "Calls to Redis that failed, by operation; they are repeated.",
        ["operation"],
        registry=registry,
    )
    make_series(counter, operation=QUEUE_OPERATIONS[side])
    return counter
