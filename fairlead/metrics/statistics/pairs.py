"""Statistics of comparisons: online DPO and the preference stage."""

from __future__ import annotations

from fairlead.metrics.statistics.entry import OF_PAIRS, Statistic

PAIRS: tuple[Statistic, ...] = (
    Statistic(
        "accuracy",
        "Accuracy of pairs",
        "share",
        "Share of the pairs that β·(log π − log π_ref) orders as labelled.",
        "Rises above 0.5.",
        minimum=0.0,
        stages=OF_PAIRS,
    ),
    Statistic(
        "margin",
        "Margin of pairs",
        "log-odds",
        "Mean difference of the implied rewards of the preferred and the other answer.",
        "Rises slowly; a steep rise with falling held-out accuracy is overfitting.",
        stages=OF_PAIRS,
    ),
    Statistic(
        "chosen_change",
        "Change of preferred answers",
        "nats per answer",
        "Log-prob of preferred answers minus that under the reference.",
        "Not far below 0: else probability moves to answers that nobody has compared.",
        stages=OF_PAIRS,
    ),
    Statistic(
        "rejected_change",
        "Change of other answers",
        "nats per answer",
        "Log-prob of the other answers minus that under the reference.",
        "Falls below that of preferred answers.",
        stages=OF_PAIRS,
    ),
    Statistic(
        "chosen_logprob",
        "Log-prob of preferred answers",
        "nats per answer",
        "Log-prob of held-out preferred answers.",
        stages=("preference",),
    ),
    Statistic(
        "drift",
        "Drift from the reference",
        "nats per answer",
        "Mean log π_ref − log π of held-out answers.",
        "Near 0.",
        stages=("preference",),
    ),
    Statistic(
        "baseline",
        "Reference point of KTO",
        "nats per answer",
        "Estimate of the divergence from the reference, against which KTO measures each answer.",
        minimum=0.0,
        stages=("preference",),
    ),
)
