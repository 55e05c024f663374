"""Metrics of an update about rollouts, queue and time, for the metrics file and for Prometheus.

Read-only; the metrics of the training step come from `step`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fairlead.metrics import TrainerMetrics
from fairlead.transports.rollouts.base import OutcomeEntry, QueueStats


def staleness(
    entries: Sequence[OutcomeEntry], *, update: int, metrics: TrainerMetrics | None = None
) -> dict[str, float]:
    """Return by how many updates the rollouts are older than the weights that train on them.

    Counted from the weights of a rollout's oldest token, in two parts. In flight: from its oldest to its
    newest token, while newer weights arrived. In the queue: from its newest token to now.

    Args:
        entries: outcomes of the batch; dead letters are ignored.
        update: updates done before this one.
        metrics: observes both parts of every rollout.
    """
    in_flight: list[int] = []
    in_queue: list[int] = []
    for entry in entries:
        for rollout in entry.outcome.rollouts:
            made_by = [span.version.update for span in rollout.completion.version_spans]
            in_flight.append(max(made_by) - min(made_by))
            in_queue.append(update - max(made_by))
    if not in_queue:
        return {}
    if metrics is not None:
        for part, values in (("in_flight", in_flight), ("in_queue", in_queue)):
            for value in values:
                metrics.staleness.labels(part=part).observe(value)
    total = [flight + queue for flight, queue in zip(in_flight, in_queue, strict=True)]
    return {
        "staleness_mean": sum(total) / len(total),
        "staleness_max": float(max(total)),
        "staleness_in_flight": sum(in_flight) / len(total),
        "staleness_in_queue": sum(in_queue) / len(total),
    }


def sampling(entries: Sequence[OutcomeEntry], aside: Sequence[OutcomeEntry]) -> dict[str, float]:
    """Return how many groups dynamic sampling set aside, and the mean score of all answers of the update.

    `reward` is that of the batch, which is biased: without groups that are all right or all wrong.

    Args:
        entries: outcomes of the batch.
        aside: groups without signal.
    """
    scores = [rollout.score for entry in (*entries, *aside) for rollout in entry.outcome.rollouts]
    mean = {"reward_sampled": sum(scores) / len(scores)} if scores else {}
    return {"no_signal": float(len(aside))} | mean


def times(seconds_per_phase: Mapping[str, float], *, tokens: float) -> dict[str, float]:
    """Return the seconds of an update by phase and in total, its share of waiting, and tokens per second."""
    seconds = sum(seconds_per_phase.values())
    return {f"seconds_{phase}": value for phase, value in seconds_per_phase.items()} | {
        "seconds": seconds,
        "idle_fraction": seconds_per_phase.get("wait", 0.0) / seconds,
        "tokens_per_second": tokens / seconds,
    }


def queue_sizes(stats: QueueStats | None, metrics: TrainerMetrics | None) -> dict[str, float]:
    """Return the sizes of the queue; empty if Redis did not answer."""
    if stats is None:
        return {}
    if metrics is not None:
        metrics.queue_outcome_bytes.set(stats.outcome_bytes)
    return {
        "queue_waiting": float(stats.waiting),
        "queue_in_flight": float(stats.in_flight),
        "queue_outcomes": float(stats.outcomes),
        "queue_memory_bytes": float(stats.memory_bytes),
    }
