"""The sections of the stages: SFT, reward model and PPO, and their checkpoints."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fairlead.config.base import ComputeSection, Section

LearningRateSchedule = Literal["linear", "cosine", "constant"]
"""How a learning rate changes after its warm-up."""


class TrainingSection(ComputeSection):
    """Memory limits of one training stage."""

    max_micro_batch_tokens: int = Field(default=16_384, ge=1)
    """Maximum number of tokens in one forward pass, padding included. The gradient does not depend on it."""
    gradient_checkpointing: bool = False
    """Store only the inputs of each block and recompute the rest in the backward pass: about a third more
    compute, much less memory, the same gradient."""
    compile: bool = False
    """Compile the blocks of the model with torch.compile in the first batches, which takes up to a minute
    and needs a C++ compiler on a CPU, Triton on a GPU. Results differ by rounding."""
    offload: bool = False
    """With several ranks, keep weights, gradients and the optimizer's state in the memory of the host; a GPU
    then holds the weights of the blocks that it computes, and activations. Slower. No effect with one
    rank."""


class LoraSection(Section):
    """Low-rank adaptation (Hu et al. 2021): the base weights are frozen, and W·x becomes W·x + alpha/rank ·
    B·A·x.
    """

    rank: int = Field(default=0, ge=0, le=1_024)
    """Rank of the adapter; 0 trains all weights instead. Usual values are 8 to 64, with a learning rate at
    least ten times that for training all weights."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the adapter: its output is multiplied by alpha/rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear layers and experts that get an adapter, such as `["q_proj", "v_proj"]`;
    `all-linear` means all linear layers except the output layer, and no experts."""
    merge: bool = False
    """Save the trained model with the adapter merged into its weights, instead of the adapter on its own."""


class DropoutLoraSection(LoraSection):
    """Low-rank adaptation as in `[ppo.lora]`, with optional dropout. PPO has no dropout, because it compares
    log-probs.
    """

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability of the adapter's inputs during training; the base model has no dropout. Adapters of
    experts have none either."""


class SftSection(TrainingSection):
    """Supervised fine-tuning with cross-entropy: on responses and assistant turns, or on every token of plain
    text.
    """

    epochs: int = Field(default=2, ge=1, le=1_000)
    """Number of passes over the demonstrations."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences per optimizer step."""
    batching: Literal["length", "packing"] = "length"
    """Layout of the sequences of a step: `length` groups sequences of similar length and pads them; `packing`
    puts several sequences into each row of `max_sequence_tokens`, without attention between them. The loss is
    the same."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    learning_rate_schedule: LearningRateSchedule = "linear"
    """Learning rate after the warm-up: `linear` and `cosine` fall to 0 at the last step, `constant` stays."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of the steps during which the learning rate rises linearly."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Maximum norm of the gradient; larger gradients are clipped."""
    max_sequence_tokens: int = Field(default=512, ge=2)
    """Maximum length of a sequence, in tokens. Longer demonstrations are truncated and counted; longer plain
    text is split into several sequences."""
    lora: DropoutLoraSection = DropoutLoraSection()
    """Train an adapter on frozen weights instead of all weights."""


class RewardModelSection(TrainingSection):
    """Training of the reward model, which starts from the SFT model: loss −log σ(r_better − r_worse),
    averaged over the pairs of a ranking.
    """

    path: str = ""
    """Local folder, GGUF file or Hugging Face id of the model to start from. Empty: the SFT model of the
    run."""
    ensemble_size: int = Field(default=1, ge=1, le=64)
    """Number of models to train, each with its own random head and data order. They are served as one
    ensemble."""
    epochs: int = Field(default=1, ge=1, le=1_000)
    """Number of passes over the comparisons."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts per optimizer step, each with all its comparisons."""
    learning_rate: float = Field(default=9e-6, gt=0)
    """Peak learning rate of AdamW."""
    learning_rate_schedule: LearningRateSchedule = "linear"
    """Learning rate after the warm-up: `linear` and `cosine` fall to 0 at the last step, `constant` stays."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of the steps during which the learning rate rises linearly."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Maximum norm of the gradient; larger gradients are clipped."""
    margin: float = Field(default=0.0, ge=0)
    """Coefficient of the margin that the loss subtracts from the difference of two scores (Llama 2): by how
    much one answer is better, which is the difference of the `score`s of a ranking, or the `margin` of a
    pair. Pairs without it have the margin 0. Held-out figures are computed without it."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed probability that a label is wrong: the loss is −(1 − ε)·log σ(d) − ε·log σ(−d). Held-out
    figures are computed without it."""
    max_sequence_tokens: int = Field(default=512, ge=2)
    """Maximum length of prompt and response, in tokens. A longer prompt loses its beginning, the same for all
    its responses; pairs of a response that leaves no space for the prompt are left out."""
    lora: DropoutLoraSection = DropoutLoraSection()
    """Train an adapter on frozen weights, and the head, instead of all weights."""


WITH_CRITIC = frozenset({"gae"})
"""Values of `ppo.estimator` that need a critic."""
OF_GROUPS = frozenset({"group", "rloo", "reinforce++_baseline", "pairs"})
"""Values of `ppo.estimator` that compare the answers to one prompt."""
OF_PAIRS = frozenset({"online_dpo", "online_dpo_soft", "online_ipo"})
"""Values of `ppo.loss` that read the best and the worst answer of a group together."""
_NOT_OF_PAIRS = (
    *("clip_range", "clip_range_high", "dual_clip", "loss_aggregation", "kl_in", "kl_estimator"),
    *("behaviour_weight", "max_behaviour_weight", "min_behaviour_weight", "proximal_logprobs"),
)
"""Keys that a loss of pairs does not use."""


class PpoSection(TrainingSection):
    """PPO with a KL penalty in the reward, and with a separate critic if `estimator` needs one."""

    updates: int = Field(default=100, ge=1, le=10_000_000)
    """Number of updates of the whole run, including those before a restart. An update trains on one batch of
    rollouts."""
    batch_size: int = Field(default=256, ge=1)
    """Rollouts per update: its prompts times `num_samples`, so a multiple of `num_samples`."""
    num_samples: int = Field(default=1, ge=1, le=4_096)
    """Answers per prompt, which form a group. The policy service reads the prompt of a group once, and the
    reward service scores the group in one call. A group is trained on in one update, or is a dead letter if
    one of its answers fails."""
    dynamic_sampling: bool = False
    """With an estimator that compares the answers to one prompt: leave out groups whose answers all have the
    same reward, KL aside, and answer a further prompt in place of each (DAPO). It pays where rewards are
    often equal, as with answers that are right or wrong."""
    max_extra_batches: int = Field(default=3, ge=1, le=100)
    """With `dynamic_sampling`: most further prompts of an update, in batches. Once they are used up, groups
    without signal stay in the batch, where they change nothing but the KL penalty."""
    mini_batch_size: int = Field(default=64, ge=1)
    """Rollouts per optimizer step; must divide `batch_size`."""
    epochs: int = Field(default=1, ge=1, le=100)
    """Number of passes over the rollouts of an update. More than one reaches higher rewards sooner, and
    reward hacking too."""
    max_staleness: int = Field(default=0, ge=0, le=64)
    """Maximum number of updates between the weights that produced a rollout and the weights that train on it.
    0 is synchronous PPO. Above 0, max_staleness + 1 batches are in progress, and the trainer trains while
    rollouts are generated."""
    estimator: Literal["gae", "group", "rloo", "reinforce++", "reinforce++_baseline", "pairs"] = "gae"
    """Estimator of advantages: `gae` with a critic; `reinforce++` without one, by the rewards from each token
    on, whitened over the batch. Four compare the answers to one prompt and need `num_samples` of at least 2:
    `group` subtracts the mean of the group (GRPO), `rloo` the mean of the other answers,
    `reinforce++_baseline` whitens the result of `group` over the batch, and `pairs`, for online DPO, keeps
    the best and the worst answer. Without a critic the trainer needs about half the memory."""
    group_scale: Literal["none", "group", "batch"] = "none"
    """What `group` divides by: `none` nothing (Dr. GRPO), `group` the standard deviation of the group (GRPO),
    which gives prompts on which answers hardly differ as much weight as others, `batch` that of the batch."""
    loss: Literal["ppo", "gspo", "cispo", "online_dpo", "online_dpo_soft", "online_ipo"] = "ppo"
    """Loss of the policy: `ppo` clips the probability ratio of each token, and a clipped token has no
    gradient; `gspo` clips that of a whole answer, the geometric mean over its tokens (usual clip ranges are
    0.0003 and 0.0004); `cispo` multiplies log π of every token by the clipped ratio, without a gradient
    through it (MiniMax-M1). Three are for `estimator = "pairs"`: `online_dpo` is DPO on the best answer of a
    group against the worst, `online_dpo_soft` the same with the probability σ(difference of the rewards) as
    the label, `online_ipo` IPO; their β is `kl_coefficient`."""
    loss_aggregation: Literal["auto", "tokens", "sequences", "constant"] = "auto"
    """Divisor of the loss of an optimizer step: `tokens` is its number of tokens (DAPO), so longer answers
    weigh more; `sequences` is the mean over answers of their mean over tokens (GRPO, GSPO); `constant` is its
    number of answers times `sampling.max_new_tokens` (Dr. GRPO), so a token weighs the same in every step.
    `auto` is `sequences` with `gspo`, the mean over pairs with losses of pairs, else `tokens`."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of Adam for the policy."""
    critic_learning_rate: float = Field(default=9e-6, gt=0)
    """Peak learning rate of Adam for the critic."""
    learning_rate_schedule: LearningRateSchedule = "linear"
    """Both learning rates after the warm-up: `linear` and `cosine` fall to 0 over `schedule_updates`,
    `constant` stays."""
    schedule_updates: int = Field(default=0, ge=0, le=10_000_000)
    """Number of updates after which `linear` and `cosine` reach 0, at least `updates`; 0 means `updates`.
    Set it if you may raise `updates` later, because another number changes the learning rates."""
    warmup_updates: int = Field(default=0, ge=0, le=10_000_000)
    """Updates during which the learning rates rise linearly."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Maximum norm of the gradient; larger gradients are clipped."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the policy's weights over optimizer steps, saved as
    `policy_ema/` at the end; 0 keeps none. InstructGPT: 0.992. Rollouts come from the policy itself."""
    critic_init: Literal["auto", "policy", "reward_model"] = "auto"
    """Initial weights of the critic: `reward_model` takes body and head of the reward model at `reward.path`
    (InstructGPT), whose tokenizer must be that of the policy; `policy` takes the body of the policy and a
    head of zeros. `auto` is `reward_model` if that has the tokenizer, the architecture and the size of the
    policy and `lora.rank` is 0, else `policy`; the log says which."""
    critic_warmup_updates: int = Field(default=0, ge=0, le=10_000_000)
    """Updates at the start that train only the critic, while the policy stays as it is. The schedule of the
    policy's learning rate begins after them. They count as `updates`."""
    kl_coefficient: float = Field(default=0.05, ge=0)
    """Coefficient β of the penalty −β·(log π − log π_ref) for each token, and β of the losses of pairs; the
    initial value if it changes."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the KL penalty is: in the `reward` of each token, so that advantages include it, or in the
    `loss`, where each token is charged only for its own divergence (GRPO)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL divergence in the reward; `k1` is unbiased. `k2` and `k3` of a token count at most
    10 nats. In the loss it is `k3` times the probability ratio, whose gradient is unbiased."""
    kl_control: Literal["fixed", "linear", "adaptive"] = "fixed"
    """`fixed` keeps `kl_coefficient`; `linear` moves it to `kl_coefficient_end`; `adaptive` adjusts it so
    that the divergence per answer approaches `kl_target` (Ziegler et al. 2019)."""
    kl_coefficient_end: float | None = Field(default=None, ge=0)
    """β after the schedule, with `kl_control = "linear"`. A β that falls finds good answers that are rare at
    first: with a small one from the start they may never be sampled."""
    kl_schedule_updates: int = Field(default=0, ge=0, le=10_000_000)
    """Number of updates after which `linear` has reached `kl_coefficient_end`, not counting
    `critic_warmup_updates`; 0 means all. Set it if you may raise `updates` later."""
    kl_target: float = Field(default=6.0, gt=0)
    """Target divergence from the reference for adaptive control, in nats per answer."""
    kl_horizon: float = Field(default=10_000.0, gt=0)
    """Horizon of adaptive control, in answers: an update changes β by at most a factor of 1 ± 0.2 ·
    batch_size/horizon."""
    clip_range: float = Field(default=0.2, gt=0, lt=1)
    """Clip range ε of the probability ratio."""
    clip_range_high: float | None = Field(default=None, gt=0)
    """Upper clip range of the probability ratio, if it should differ from the lower one (clip-higher, DAPO).
    Unset: `clip_range`."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound of the loss of a token with a negative advantage, as a multiple of the advantage (Ye et al. 2020,
    usually 3). Unset: no bound."""
    behaviour_weight: Literal["truncate", "mask", "mask_sequences"] = "truncate"
    """What happens to the importance weight π_prox/π_behav of a token, in rollouts whose π_prox is computed:
    `truncate` limits it to `max_behaviour_weight`; `mask` drops tokens whose weight is outside
    `min_behaviour_weight` and `max_behaviour_weight` (IcePop, which uses 0.5 and 5); `mask_sequences` drops
    answers whose geometric mean is, and truncates the weights of others."""
    max_behaviour_weight: float = Field(default=2.0, ge=1)
    """Maximum of the importance weight, see `behaviour_weight`."""
    min_behaviour_weight: float = Field(default=0.5, ge=0, le=1)
    """Minimum of the importance weight with `mask` and `mask_sequences`."""
    proximal_logprobs: Literal["auto", "stale", "all"] = "auto"
    """Rollouts whose log π_prox the trainer computes before the first step, instead of taking the recorded
    log-probs: those of older weights (`stale`), or `all`, which costs a forward pass. `auto` is `stale` if
    `policy.engine` is `transformers` and `dtype` is `float32` here, in `[policy]` and in `[weights]`, else
    `all`: the log-probs of the engine then differ by more than rounding, which must not be in the probability
    ratio."""
    value_clip_range: float = Field(default=0.2, gt=0)
    """Clip range of the change of the value, in standard deviations of the returns."""
    gae_gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount factor γ."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """λ of generalised advantage estimation. Until the critic has learnt, a token sees the score that comes n
    tokens later with the weight λⁿ: 5% of it after 60 tokens at 0.95. Use 1 for answers of more than about
    100 tokens."""
    missing_eos_penalty: float | None = Field(default=None, ge=0)
    """Subtracted from the score of an answer that was cut off at `max_new_tokens`. Unset: the standard
    deviation of the scores, so that a missing end does not pay: the one that reward-model training saved with
    the model, else that of the first batch, kept in the checkpoint. Set it to 0 if answers need no end."""
    mask_cut_off: bool = False
    """Leave answers that were cut off at `max_new_tokens` out of the loss (DAPO's overlong filtering). They
    still count in the mean of their group."""
    overlong_penalty: float = Field(default=0.0, ge=0)
    """Largest length penalty: subtracted from the score of an answer of `max_new_tokens`, and in proportion
    from that of an answer in the last `overlong_buffer_tokens` before (DAPO's soft punishment, with 1)."""
    overlong_buffer_tokens: int = Field(default=16, ge=1)
    """Number of tokens before `max_new_tokens` over which `overlong_penalty` rises from 0."""
    normalise_scores: bool = False
    """Replace a score by its distance from the mean of all previous scores, in their standard deviations."""
    score_clip: float = Field(default=10.0, gt=0)
    """Scores are clipped to ± this value, after `normalise_scores`."""
    whiten_rewards: bool = False
    """Scale the rewards of a batch, KL penalty included, to variance 1 without shifting their mean."""
    ptx_coefficient: float = Field(default=0.0, ge=0)
    """Coefficient γ of PPO-ptx: weight of the cross-entropy on demonstrations in every optimizer step; 0
    disables it."""
    ptx_batch_size: int = Field(default=32, ge=1)
    """Demonstrations per optimizer step, with `ptx_coefficient`."""
    lora: LoraSection = LoraSection()
    """Train one adapter for the policy and one for the critic on frozen weights, instead of all weights."""

    @property
    def has_critic(self) -> bool:
        """Whether the estimator needs a critic."""
        return self.estimator in WITH_CRITIC

    @property
    def answers_per_loss(self) -> int:
        """Number of answers that the loss reads together; no mini-batch, micro-batch or rank divides them."""
        return 2 if self.loss in OF_PAIRS else 1

    @property
    def final_kl_coefficient(self) -> float:
        """β after the schedule; `kl_coefficient` without one."""
        return self.kl_coefficient if self.kl_coefficient_end is None else self.kl_coefficient_end

    @property
    def num_kl_schedule_updates(self) -> int:
        """Number of updates after which β has reached its final value."""
        return self.kl_schedule_updates or self.updates - self.critic_warmup_updates

    @property
    def tasks_per_update(self) -> int:
        """Number of prompts of an update."""
        return self.batch_size // self.num_samples

    @property
    def aggregation(self) -> str:
        """`loss_aggregation` with `auto` resolved."""
        if self.loss_aggregation != "auto":
            return self.loss_aggregation
        return "sequences" if self.loss == "gspo" or self.loss in OF_PAIRS else "tokens"

    @property
    def extra_tasks(self) -> int:
        """Largest number of tasks of an update beyond `tasks_per_update`."""
        return self.max_extra_batches * self.tasks_per_update if self.dynamic_sampling else 0

    @property
    def num_schedule_updates(self) -> int:
        """Number of updates that the learning-rate schedule counts to."""
        return self.schedule_updates or self.updates

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.learning_rate_schedule != "constant" and self.num_schedule_updates < self.updates:
            raise ValueError(
                f"schedule_updates {self.schedule_updates} is less than updates {self.updates}: nothing is "
                "learnt at a learning rate of 0; raise it, or set learning_rate_schedule = 'constant'"
            )
        if self.warmup_updates >= self.num_schedule_updates:
            raise ValueError(
                f"warmup_updates {self.warmup_updates} leaves nothing of {self.num_schedule_updates} updates"
            )
        return self

    @model_validator(mode="after")
    def _check_critic_warmup(self) -> Self:
        if not self.critic_warmup_updates:
            return self
        if not self.has_critic:
            raise ValueError(
                f"critic_warmup_updates {self.critic_warmup_updates} trains a critic, which estimator "
                f"{self.estimator!r} does not have"
            )
        if self.critic_warmup_updates + self.warmup_updates >= self.updates:
            raise ValueError(
                f"critic_warmup_updates {self.critic_warmup_updates} and warmup_updates "
                f"{self.warmup_updates} leave nothing of {self.updates} updates for the policy"
            )
        return self

    @model_validator(mode="after")
    def _check_kl_schedule(self) -> Self:
        is_scheduled = self.kl_control == "linear"
        if is_scheduled and self.kl_coefficient_end is None:
            raise ValueError("kl_control 'linear' needs kl_coefficient_end, the β at its end")
        for name in ("kl_coefficient_end", "kl_schedule_updates"):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default and not is_scheduled:
                raise ValueError(
                    f"{name} {value} has no effect with kl_control {self.kl_control!r}: remove it, or set "
                    "kl_control = 'linear'"
                )
        return self

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if (self.loss in OF_PAIRS) != (self.estimator == "pairs"):
            losses = " or ".join(repr(loss) for loss in sorted(OF_PAIRS))
            raise ValueError(
                f"loss {self.loss!r} does not fit estimator {self.estimator!r}: to compare the best and the "
                f"worst answer of a group set estimator = 'pairs' and loss = {losses}, otherwise neither"
            )
        if self.loss not in OF_PAIRS:
            return self
        for name in _NOT_OF_PAIRS:
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(f"{name} {value!r} has no effect with loss {self.loss!r}: remove it")
        if not (self.kl_coefficient and self.final_kl_coefficient):
            raise ValueError(f"kl_coefficient 0 leaves nothing of loss {self.loss!r}, whose β it is")
        if self.mini_batch_size % 2:
            raise ValueError(
                f"mini_batch_size {self.mini_batch_size} cuts a pair of answers: loss {self.loss!r} needs an "
                "even number"
            )
        return self

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.batch_size % self.num_samples:
            below = self.batch_size - self.batch_size % self.num_samples
            allowed = [size for size in (below, below + self.num_samples) if size]
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of num_samples {self.num_samples}: it "
                f"counts answers, and every prompt has {self.num_samples}; set it to "
                f"{' or '.join(map(str, allowed))}"
            )
        if self.batch_size % self.mini_batch_size:
            fit = [size for size in range(1, self.batch_size + 1) if self.batch_size % size == 0]
            nearest = sorted(sorted(fit, key=lambda size: abs(size - self.mini_batch_size))[:2])
            raise ValueError(
                f"mini_batch_size {self.mini_batch_size} does not divide batch_size {self.batch_size}; set "
                f"it to {' or '.join(map(str, nearest))}"
            )
        return self

    @model_validator(mode="after")
    def _check_estimator(self) -> Self:
        if self.estimator in OF_GROUPS and self.num_samples < 2:
            raise ValueError(
                f"estimator {self.estimator!r} compares the answers to one prompt, but num_samples is "
                f"{self.num_samples}; set it to 2 or more, usually 4 to 16, or use 'gae' or 'reinforce++'"
            )
        if self.dynamic_sampling and self.estimator not in OF_GROUPS:
            raise ValueError(
                f"dynamic_sampling leaves out groups of equal rewards, but estimator {self.estimator!r} does "
                f"not compare the answers to one prompt; use one of {', '.join(sorted(OF_GROUPS))}, or "
                "dynamic_sampling = false"
            )
        if self.whiten_rewards and self.estimator in OF_GROUPS:
            raise ValueError(
                f"whiten_rewards scales the rewards of tokens, but estimator {self.estimator!r} compares "
                "whole answers; use group_scale with estimator = 'group', or whiten_rewards = false"
            )
        return self


class CheckpointSection(Section):
    """Checkpoints of every stage, in `checkpoints/` (PPO) and `checkpoints_STAGE/` of the run's folder."""

    every_updates: int = Field(default=5, ge=1)
    """PPO: updates between checkpoints. The last update always writes one."""
    every_steps: int = Field(default=500, ge=1)
    """Stages without rollouts: optimizer steps between checkpoints. SIGTERM and Ctrl-C write one too;
    they are deleted when the stage has finished."""
    keep: int = Field(default=2, ge=1, le=1_000)
    """Number of newest valid checkpoints to keep."""
    asynchronous: bool = False
    """PPO with several ranks: copy what a checkpoint holds to the memory of the host, and write it while the
    next update is collected and computed. The checkpoint is committed before the outcomes of that update are
    settled. Each rank needs host memory for its part of the checkpoint once more."""
