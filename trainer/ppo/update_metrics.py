"""What an update says about rollouts, queue and time: figures for the metrics file, and their gauges.

Only reads; the learning's own figures come from `step`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fairlead import metrics
from fairlead.transports.rollouts.base import OutcomeEntry, QueueStats
from fairlead.types import Rollout


def staleness(
    entries: Sequence[OutcomeEntry], *, update: int, gauges: metrics.TrainerMetrics | None = None
) -> dict[str, float]:
    """How many updates the rollouts lag behind the weights that train on them, `update` updates old.

    Counted from the weights of a rollout's oldest token, and split where its last token was made: behind that
    token it waited in the queue, up to there it was in flight while newer weights came in.
    """
    in_flight, in_queue = [], []
    for entry in entries:
        if isinstance(entry.outcome.result, Rollout):
            made_by = [span.version.update for span in entry.outcome.result.completion.version_spans]
            in_flight.append(max(made_by) - min(made_by))
            in_queue.append(update - max(made_by))
    if not in_queue:
        return {}
    if gauges is not None:
        for part, values in (("in_flight", in_flight), ("in_queue", in_queue)):
            for value in values:
                gauges.staleness.labels(part=part).observe(value)
    total = [flight + queue for flight, queue in zip(in_flight, in_queue, strict=True)]
    return {
        "staleness_mean": sum(total) / len(total),
        "staleness_max": float(max(total)),
        "staleness_in_flight": sum(in_flight) / len(total),
        "staleness_in_queue": sum(in_queue) / len(total),
    }


def times(spent: Mapping[str, float], *, tokens: float) -> dict[str, float]:
    """Seconds of an update by phase and as a whole, its share of waiting, and its speed."""
    seconds = sum(spent.values())
    return {f"seconds_{phase}": value for phase, value in spent.items()} | {
        "seconds": seconds,
        "idle_fraction": spent.get("wait", 0.0) / seconds,
        "tokens_per_second": tokens / seconds,
    }


def queue(stats: QueueStats | None, gauges: metrics.TrainerMetrics | None) -> dict[str, float]:
    """Sizes of the queue; nothing if it does not answer."""
    if stats is None:
        return {}
    if gauges is not None:
        for what in ("waiting", "in_flight", "outcomes"):
            gauges.queue.labels(what=what).set(getattr(stats, what))
        gauges.queue_memory_bytes.set(stats.memory_bytes)
        gauges.queue_outcome_bytes.set(stats.outcome_bytes)
    return {
        "queue_waiting": float(stats.waiting),
        "queue_in_flight": float(stats.in_flight),
        "queue_outcomes": float(stats.outcomes),
        "queue_memory_bytes": float(stats.memory_bytes),
    }
