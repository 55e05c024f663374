"""Statistics of the pace of a run: staleness, time, the queue."""

from __future__ import annotations

from fairlead.metrics.statistics.entry import Statistic

PACE: tuple[Statistic, ...] = (
    Statistic(
        "staleness_mean",
        "Staleness, mean",
        "updates",
        "Updates between the weights of a rollout's oldest token and those that train on it.",
        "0 with `ppo.max_staleness = 0`; else below it.",
        minimum=0.0,
    ),
    Statistic(
        "staleness_max", "Staleness, largest", "updates", "The largest staleness of the batch.", minimum=0.0
    ),
    Statistic(
        "staleness_in_flight",
        "Staleness from generation",
        "updates",
        "Mean number of updates that arrived while an answer was generated.",
        "High: answers take long compared with an update.",
        minimum=0.0,
    ),
    Statistic(
        "staleness_in_queue",
        "Staleness from waiting",
        "updates",
        "Mean number of updates that a finished rollout waited in the queue.",
        "High: rollouts are made faster than they are trained on.",
        minimum=0.0,
    ),
    Statistic(
        "stale_rollouts",
        "Stale rollouts",
        "share",
        "Share of the batch that older weights sampled.",
        minimum=0.0,
    ),
    Statistic(
        "seconds", "Time of an update", "seconds", "Time of the update in all phases.", "Steady.", minimum=0.0
    ),
    Statistic(
        "seconds_<phase>",
        "Time in a phase",
        "seconds",
        "Time of the update in a phase: wait, prepare, train, publish, checkpoint, evaluate.",
        minimum=0.0,
    ),
    Statistic(
        "idle_fraction",
        "Waiting for rollouts",
        "share",
        "Share of the update in which the trainer waited for rollouts.",
        "Above 0.8: add policy replicas or workers. Near 0: the services wait for the trainer.",
        minimum=0.0,
    ),
    Statistic(
        "tokens_per_second",
        "Speed",
        "tokens/s",
        "Response tokens of the update ÷ its seconds.",
        "Steady.",
        minimum=0.0,
    ),
    Statistic(
        "queue_waiting",
        "Tasks waiting",
        "tasks",
        "Tasks in the queue that no worker has claimed, at the end of the update.",
        minimum=0.0,
    ),
    Statistic(
        "queue_in_flight",
        "Tasks in progress",
        "tasks",
        "Tasks that workers have claimed, at the end of the update.",
        minimum=0.0,
    ),
    Statistic(
        "queue_outcomes",
        "Outcomes in the queue",
        "tasks",
        "Outcomes in the queue, at the end of the update.",
        minimum=0.0,
    ),
    Statistic(
        "queue_memory_bytes",
        "Memory of Redis",
        "bytes",
        "Memory that Redis uses, at the end of the update.",
        "Well below `maxmemory`: when Redis is full, workers keep their results.",
        minimum=0.0,
    ),
    Statistic("update", "Update", "updates", "Number of the update.", minimum=0.0),
)
