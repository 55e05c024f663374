"""Statistics of held-out prompts."""

from __future__ import annotations

from fairlead.metrics.statistics.entry import Statistic

EVALUATION: tuple[Statistic, ...] = (
    Statistic(
        "eval_reward",
        "Held-out reward",
        "score",
        "Mean score of answers to held-out prompts.",
        "Rises with `reward`. A gap means that the policy has learnt the training prompts.",
    ),
    Statistic(
        "eval_heldout_reward",
        "Second reward model",
        "score",
        "Mean score by a reward model that PPO does not maximise.",
        "Rises with `reward`. If it falls while `reward` rises, the reward model is being gamed.",
    ),
    Statistic(
        "eval_objective",
        "Held-out objective",
        "score",
        "Held-out reward minus the KL penalty and that of missing ends; the update with the highest becomes "
        "`policy_best`.",
        "Rises.",
    ),
    Statistic(
        "eval_kl",
        "Held-out KL",
        "nats per answer",
        "Divergence from the reference of answers to held-out prompts.",
        "Similar to `kl`.",
        minimum=0.0,
    ),
    Statistic(
        "eval_length",
        "Held-out length",
        "tokens",
        "Mean number of tokens of answers to held-out prompts.",
        minimum=0.0,
    ),
    Statistic(
        "eval_eos_rate",
        "Held-out answers that end",
        "share",
        "Share of answers to held-out prompts that end with a stop token.",
        "Near 1.",
        minimum=0.0,
    ),
    Statistic(
        "eval_term_<name>",
        "Held-out term of the reward",
        "score",
        "Mean score of a term of a combined reward on held-out prompts.",
    ),
)
