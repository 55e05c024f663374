"""Statistics of the stages that learn from data: SFT, reward model, preferences."""

from __future__ import annotations

from fairlead.metrics.statistics.entry import OF_DATA, Statistic

SUPERVISED: tuple[Statistic, ...] = (
    Statistic(
        "loss",
        "Loss",
        "nats",
        "Loss of an optimizer step: cross-entropy per token in SFT, per comparison in the other stages.",
        "Falls; chance level of a comparison is ln 2 = 0.693.",
        minimum=0.0,
        stages=OF_DATA,
    ),
    Statistic(
        "gradient_norm",
        "Gradient",
        "",
        "Norm of the gradient before clipping.",
        "Steady.",
        minimum=0.0,
        stages=OF_DATA,
    ),
    Statistic("epoch", "Epoch", "epochs", "Number of the epoch.", minimum=0.0, stages=OF_DATA),
    Statistic(
        "member",
        "Member",
        "",
        "Number of the member of the ensemble that is trained.",
        minimum=0.0,
        stages=("reward_model",),
    ),
    Statistic(
        "heldout_loss",
        "Held-out loss",
        "nats",
        "Loss on held-out examples after an epoch.",
        "Falls. If it rises while `loss` falls, train fewer epochs.",
        minimum=0.0,
        stages=OF_DATA,
    ),
    Statistic(
        "heldout_accuracy",
        "Held-out accuracy",
        "share",
        "Share of held-out comparisons that the model orders as labelled.",
        "Above the baselines in the stage's result; at most what labelers agree on.",
        minimum=0.0,
        stages=("reward_model", "preference"),
    ),
    Statistic(
        "heldout_ece",
        "Held-out calibration error",
        "share",
        "Mean gap between the model's confidence and its accuracy on held-out comparisons.",
        "Below 0.1.",
        minimum=0.0,
        stages=("reward_model",),
    ),
)
