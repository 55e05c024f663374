"""What each statistic of a training stage means: the one table that docs, report, status and dashboards use.

The names are those of `metrics_<stage>.jsonl` and of the label `name` of `fairlead_trainer_statistic` and
`fairlead_stage_figure`. Knows nothing about how a statistic is computed or shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

PPO = ("ppo",)
PAIRS = ("ppo", "preference")
SUPERVISED = ("sft", "reward_model", "preference")


@dataclass(frozen=True, slots=True)
class Statistic:
    """One statistic, or a family of them."""

    name: str
    """Its key; `<…>` at its end is any text, as in `term_<name>`."""
    title: str
    """A heading, without the unit: `Reward`."""
    unit: str
    """Unit of the value as a reader writes it: `nats per answer`, `seconds`, `share`; empty for a plain
    number."""
    meaning: str
    """One sentence or two: what is measured."""
    good: str = ""
    """What a healthy run shows, and what a deviation means."""
    signal: str = ""
    """The signal of the guard that judges it; its limits are `guard.<signal>_warn_above` and so on."""
    minimum: float | None = None
    """Smallest possible value, at which the axis of a chart begins; None if there is none."""
    stages: Sequence[str] = PPO
    """The stages that have it."""

    @property
    def prefix(self) -> str:
        """The fixed part of the name of a family; empty if this is a single statistic."""
        return self.name.partition("<")[0] if "<" in self.name else ""


STATISTICS: tuple[Statistic, ...] = (
    # Rollouts.
    Statistic(
        "reward",
        "Reward",
        "score",
        "Mean score of the reward model for the answers of an update.",
        "Rises and flattens out. It is the proxy that PPO maximises: read it with KL, length and samples.",
    ),
    Statistic(
        "reward_std",
        "Spread of the reward",
        "score",
        "Standard deviation of the scores of an update.",
        "Near 0 there is nothing left to learn from: all answers are worth the same.",
        minimum=0.0,
    ),
    Statistic(
        "reward_with_kl",
        "Reward with KL penalty",
        "score",
        "Mean of what PPO maximises: shaped score minus the KL penalty of the answer.",
        "Rises. If it falls while the reward rises, the KL penalty outweighs the gain.",
    ),
    Statistic(
        "reward_sampled",
        "Reward of all answers",
        "score",
        "With dynamic sampling: mean score of all answers, including groups that were set aside.",
        "Rises; unlike `reward` it is not biased by the selection of groups.",
    ),
    Statistic(
        "term_<name>",
        "Term of the reward",
        "score",
        "Mean score of a term of a combined reward.",
        "No term rises at the expense of another that matters.",
    ),
    Statistic(
        "reward_multiplier",
        "λ of the constraint",
        "",
        "Weight of the constrained term of a combined reward, where it is adapted.",
        "Settles. If it grows without end, the constraint cannot be kept.",
        minimum=0.0,
    ),
    Statistic(
        "kl",
        "Distance from the reference (KL)",
        "nats per answer",
        "Divergence of the policy from the reference by estimator k1; unbiased, may be negative.",
        "Rises slowly. A steep climb late in a run often means that the reward model is being gamed.",
        signal="kl",
        minimum=0.0,
    ),
    Statistic(
        "kl_k2",
        "KL by estimator k2",
        "nats per answer",
        "Divergence from the reference by estimator k2; biased, with low variance.",
        "Similar to `kl` while both are small.",
        minimum=0.0,
    ),
    Statistic(
        "kl_k3",
        "KL by estimator k3",
        "nats per answer",
        "Divergence from the reference by estimator k3; never negative, with a heavy tail.",
        "Similar to `kl`. Far above it, a few tokens have become very unlikely under the reference.",
        signal="kl_k3",
        minimum=0.0,
    ),
    Statistic(
        "kl_coefficient",
        "KL coefficient β",
        "",
        "Coefficient of the KL penalty in this update.",
        "Constant, or as `ppo.kl_control` moves it.",
        minimum=0.0,
    ),
    Statistic(
        "response_length",
        "Length of answers",
        "tokens",
        "Mean number of tokens of an answer.",
        "Stays near that of the first update. If it drifts, read the samples.",
        signal="length_ratio",
        minimum=0.0,
    ),
    Statistic(
        "eos_rate",
        "Answers that end",
        "share",
        "Share of answers that end with a stop token instead of being cut off at the length limit.",
        "Stays near 1. A drop means that answers run into `sampling.max_new_tokens`.",
        signal="eos_ratio",
        minimum=0.0,
    ),
    Statistic("tokens", "Response tokens", "tokens", "Response tokens of the update.", minimum=0.0),
    Statistic(
        "masked_rollouts",
        "Answers left out",
        "share",
        "With `ppo.mask_cut_off`: share of answers that were cut off and are not trained on.",
        "Near 0.",
        minimum=0.0,
    ),
    Statistic(
        "no_signal",
        "Groups set aside",
        "groups",
        "With dynamic sampling: groups whose answers all have the same reward and that were replaced.",
        "Grows as prompts are solved; if it is many times the batch, prompts are too easy or too hard.",
        minimum=0.0,
    ),
    Statistic(
        "groups_without_signal",
        "Groups without signal",
        "share",
        "Share of the groups in the batch whose answers do not differ in their rewards.",
        "Well below 1: a group without signal contributes no gradient.",
        minimum=0.0,
    ),
    Statistic(
        "group_score_std",
        "Spread within groups",
        "score",
        "Mean standard deviation of the scores within a group.",
        "Above 0: group estimators learn only from differences within a group.",
        minimum=0.0,
    ),
    # Learning.
    Statistic(
        "entropy",
        "Entropy",
        "nats per token",
        "How varied the policy's next token is, on the first mini-batch before the first step.",
        "Falls slowly. Near 0 the policy always gives the same answer.",
        signal="entropy_ratio",
        minimum=0.0,
    ),
    Statistic(
        "policy_loss",
        "Loss of the policy",
        "",
        "Loss of the policy, mean over the optimizer steps of the update.",
        "Near 0 and noisy: its size says little; it is to be finite.",
    ),
    Statistic(
        "kl_loss",
        "KL in the loss",
        "nats",
        'With `ppo.kl_in = "loss"`: the divergence that is added to the loss, before β.',
        "Rises slowly, like `kl`.",
    ),
    Statistic(
        "value_loss",
        "Loss of the critic",
        "score²",
        "Mean squared error of the critic's predictions, clipped.",
        "Falls in the first updates and stays low.",
        minimum=0.0,
    ),
    Statistic(
        "ptx_loss",
        "Loss on demonstrations",
        "nats per token",
        "With PPO-ptx: cross-entropy on demonstrations.",
        "Stays near the held-out loss of SFT. If it rises, the policy forgets.",
        minimum=0.0,
    ),
    Statistic(
        "explained_variance",
        "Explained variance",
        "share",
        "Share of the variance of the returns that the critic predicts: 1 − var(return − value) ÷ "
        "var(return).",
        "Rises from 0 towards 1. Negative: the critic is worse than a constant.",
    ),
    Statistic(
        "clip_fraction",
        "Clipped tokens",
        "share",
        "Share of tokens whose probability ratio is outside of the clip range.",
        "0.01 to 0.3. Higher: the learning rate or the number of steps an update is too large.",
        minimum=0.0,
    ),
    Statistic(
        "ratio_first",
        "Ratio before the first step",
        "",
        "Mean probability ratio π_θ/π_prox on the first mini-batch, before the first step.",
        "1. Anything else means that the trainer and the sampler compute different log-probs.",
    ),
    Statistic(
        "policy_kl",
        "Change within an update",
        "nats per token",
        "Divergence of the policy from the one before the update, by estimator k3.",
        "Below about 0.02. Higher: steps are too large.",
        minimum=0.0,
    ),
    Statistic(
        "policy_gradient_norm",
        "Gradient of the policy",
        "",
        "Norm of the policy's gradient before clipping, mean over steps.",
        "Steady. A growing norm precedes a divergence.",
        minimum=0.0,
    ),
    Statistic(
        "critic_gradient_norm",
        "Gradient of the critic",
        "",
        "Norm of the critic's gradient before clipping, mean over steps.",
        "Falls after the first updates.",
        minimum=0.0,
    ),
    Statistic(
        "skipped_steps",
        "Skipped steps",
        "steps",
        "Optimizer steps of the update that were left out because a loss or gradient was not finite.",
        "0.",
        minimum=0.0,
    ),
    Statistic("lr", "Learning rate", "", "Learning rate of the policy.", minimum=0.0),
    Statistic(
        "mismatch_mean",
        "Sampler against trainer, mean",
        "nats per token",
        "Mean difference between the log-prob that the policy service recorded and the trainer's own, before "
        "the first step, for tokens of the same weights.",
        "Below 0.0001 in float32, about 0.05 in bfloat16.",
        signal="mismatch",
        minimum=0.0,
    ),
    Statistic(
        "mismatch_max",
        "Sampler against trainer, largest",
        "nats per token",
        "Largest difference between the log-prob that the policy service recorded and the trainer's own.",
        "Near 0: both run the same model.",
        minimum=0.0,
    ),
    Statistic(
        "behaviour_weight",
        "Weight of stale tokens",
        "",
        "Mean of π_prox/π_behav over the tokens of stale rollouts, as `ppo.behaviour_weight` limits it.",
        "Near 1. Far below it, stale rollouts hardly count.",
        minimum=0.0,
    ),
    Statistic(
        "behaviour_weight_cut",
        "Limited weights",
        "share",
        "Share of the tokens of stale rollouts whose weight is limited, or set to 0.",
        "Near 0. A high share: lower `ppo.max_staleness`.",
        minimum=0.0,
    ),
    # Pairs: online DPO and the preference stage.
    Statistic(
        "accuracy",
        "Accuracy of pairs",
        "share",
        "Share of the pairs that β·(log π − log π_ref) orders as labelled.",
        "Rises above 0.5.",
        minimum=0.0,
        stages=PAIRS,
    ),
    Statistic(
        "margin",
        "Margin of pairs",
        "log-odds",
        "Mean difference of the implied rewards of the preferred and the other answer.",
        "Rises slowly; a steep rise with falling held-out accuracy is overfitting.",
        stages=PAIRS,
    ),
    Statistic(
        "chosen_change",
        "Change of preferred answers",
        "nats per answer",
        "Log-prob of preferred answers minus that under the reference.",
        "Not far below 0: else probability moves to answers that nobody has compared.",
        stages=PAIRS,
    ),
    Statistic(
        "rejected_change",
        "Change of other answers",
        "nats per answer",
        "Log-prob of the other answers minus that under the reference.",
        "Falls below that of preferred answers.",
        stages=PAIRS,
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
    # Staleness.
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
    # Time.
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
    # Evaluation.
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
    # The guard.
    Statistic(
        "guard_length_ratio",
        "Length against the first update",
        "ratio",
        "Tokens per answer ÷ those of the first update.",
        "Near 1.",
        signal="length_ratio",
        minimum=0.0,
    ),
    Statistic(
        "guard_repetition",
        "Repetition",
        "share",
        "Share of repeated 3-grams within an answer, minus three times that of the first update.",
        "At most 0.",
        signal="repetition",
    ),
    Statistic(
        "guard_eos_ratio",
        "Ends against the first update",
        "ratio",
        "Share of answers that are not cut off ÷ that of the first update, beyond sampling error.",
        "1.",
        signal="eos_ratio",
        minimum=0.0,
    ),
    Statistic(
        "guard_kl",
        "KL",
        "nats per answer",
        "Divergence from the reference by estimator k1.",
        "Below 10.",
        signal="kl",
    ),
    Statistic(
        "guard_kl_k3",
        "KL by k3",
        "nats per answer",
        "Divergence from the reference by estimator k3.",
        "Below 20.",
        signal="kl_k3",
        minimum=0.0,
    ),
    Statistic(
        "guard_entropy_ratio",
        "Entropy against the first update",
        "ratio",
        "Entropy per token ÷ that of the first update.",
        "Halves in healthy runs, too.",
        signal="entropy_ratio",
        minimum=0.0,
    ),
    Statistic(
        "guard_distinct_ratio",
        "Variety against the first update",
        "ratio",
        "Share of distinct answers ÷ that of the first update.",
        "Halves in healthy runs, too.",
        signal="distinct_ratio",
        minimum=0.0,
    ),
    Statistic(
        "guard_score_length",
        "Score follows length",
        "correlation",
        "Spearman's correlation of score and length over the answers of an update.",
        "Below 0.8. Near 1 the reward model rewards length.",
        signal="score_length",
        minimum=-1.0,
    ),
    Statistic(
        "guard_scores_outside",
        "Unusual scores",
        "share",
        "Share of scores outside the 0.5% to 99.5% quantiles of the reward model's training scores.",
        "0.01 on the training data. Above 0.5 the policy is where the reward model has not learnt.",
        signal="scores_outside",
        minimum=0.0,
    ),
    Statistic(
        "guard_mismatch",
        "Sampler against trainer",
        "nats per token",
        "The statistic `mismatch_mean`, as the guard judges it.",
        "Below 0.1.",
        signal="mismatch",
        minimum=0.0,
    ),
    Statistic(
        "guard_overconfidence",
        "Overconfidence",
        "share",
        "On fresh labels: share that the reward model claims to predict, minus the share that it predicts.",
        "At most 0.13 in healthy runs of the quickstart.",
        signal="overconfidence",
    ),
    # Supervised stages.
    Statistic(
        "loss",
        "Loss",
        "nats",
        "Loss of an optimizer step: cross-entropy per token in SFT, per comparison in the other stages.",
        "Falls; chance level of a comparison is ln 2 = 0.693.",
        minimum=0.0,
        stages=SUPERVISED,
    ),
    Statistic(
        "gradient_norm",
        "Gradient",
        "",
        "Norm of the gradient before clipping.",
        "Steady.",
        minimum=0.0,
        stages=SUPERVISED,
    ),
    Statistic("epoch", "Epoch", "epochs", "Number of the epoch.", minimum=0.0, stages=SUPERVISED),
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
        stages=SUPERVISED,
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
"""Every statistic, in the order in which a reader needs them."""

SIGNALS = tuple(statistic.signal for statistic in STATISTICS if statistic.name == f"guard_{statistic.signal}")
"""The signals of the guard against reward hacking."""

_BY_NAME = {statistic.name: statistic for statistic in STATISTICS}
_HELDOUT = "heldout_"


def find(name: str) -> Statistic | None:
    """Return the entry of a statistic, with `name` and title of this member of a family; None if unknown.

    Args:
        name: a key of metrics_<stage>.jsonl.
    """
    known = _BY_NAME.get(name)
    if known is not None:
        return known
    for family in STATISTICS:
        if family.prefix and name.startswith(family.prefix):
            member = name.removeprefix(family.prefix).replace("_", " ")
            return replace(family, name=name, title=f"{family.title}: {member}")
    if name.startswith(_HELDOUT) and (trained := _BY_NAME.get(name.removeprefix(_HELDOUT))) is not None:
        return replace(
            trained,
            name=name,
            title=f"Held-out: {trained.title[0].lower()}{trained.title[1:]}",
            meaning=f"{trained.meaning} On held-out examples, after an epoch.",
        )
    return None
