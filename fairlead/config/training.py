"""The sections that training reads: base model, data, and the stages SFT, reward model and PPO."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fairlead.config.base import ComputeSection, Section
from fairlead.types import SamplingParams


class ScratchModel(Section):
    """A small Llama with random weights and a tokenizer made from the run's own texts."""

    hidden_size: int = Field(default=64, ge=8, le=8_192)
    """Width."""
    num_layers: int = Field(default=2, ge=1, le=128)
    """Blocks."""
    num_heads: int = Field(default=4, ge=1, le=128)
    """Attention heads; must divide the width."""
    max_position_embeddings: int = Field(default=256, ge=8, le=131_072)
    """Longest sequence in tokens."""
    tokenizer: Literal["words", "bpe"] = "bpe"
    """`words` splits at white space; `bpe` is byte-level byte-pair encoding."""
    vocabulary_size: int = Field(default=4_096, ge=16, le=262_144)
    """Entries of the tokenizer at most."""


class ModelSection(Section):
    """Where the base model comes from: a path or hub id, or from scratch."""

    path: str = ""
    """Local folder or hub id of a causal language model. Empty: from scratch."""
    scratch: ScratchModel = ScratchModel()
    """Sizes of a model from scratch; used when `path` is empty."""


class DataSection(Section):
    """Files of JSON lines (plain or gzipped) or Parquet, folders, datasets of the hub: docs/data.md has every
    form. Paths are absolute, or relative to the folder of the run's file.
    """

    demonstrations: str | tuple[str, ...] = ""
    """For SFT, one source or several: `{"prompt", "completion"}`, `{"messages": [{"role", "content"}]}` or
    plain `{"text"}` a line, mixed as you like; prompt and completion may be messages, too."""
    preferences: str | tuple[str, ...] = ""
    """For the reward model, one source or several: `{"prompt", "responses": [{"text", "rank"}]}` (1 is best,
    equal ranks are ties), the same with `score` (higher is better), or `{"prompt", "chosen", "rejected"}` a
    line, as text or as messages; without `prompt` it is what `chosen` and `rejected` begin with alike."""
    tie_margin: float = Field(default=0.0, ge=0)
    """Responses whose scores are closer than this are ties; ranks are taken as they are."""
    prompts: str | tuple[str, ...] = ""
    """For PPO, one source or several: `{"prompt"}`, as text or as messages, or `{"messages"}` a line."""
    fresh_rankings: str = ""
    """For PPO's guard: rankings of answers in the run's samples_ppo.jsonl, in a form of `preferences`, that
    labelers append while it runs; it need not exist yet."""
    sentences: str = ""
    """`{"text", "label"}` a line; demonstrations, preferences and prompts are derived from it where they are
    empty: the first words are the prompt, label 1 is preferred."""
    bad_lines: Literal["refuse", "skip"] = "refuse"
    """What becomes of a line that cannot be read: `refuse` stops at the first, `skip` leaves it out and says
    how many were; a damaged file is always refused."""
    prompt_words: int = Field(default=3, ge=1, le=100)
    """Words of a sentence that make the prompt, with `sentences`."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the prompts kept out of training, split by prompt."""


class TrainingSection(ComputeSection):
    """A stage of training: what it may hold in memory at a time."""

    max_micro_batch_tokens: int = Field(default=16_384, ge=1)
    """Tokens, padding included, of one forward pass; the gradient does not depend on it."""
    gradient_checkpointing: bool = False
    """Keep only what goes into each block and compute the rest again in the backward pass: about a third more
    work, a fraction of the memory, the same gradient."""


class LoraSection(Section):
    """Low-rank adaptation (Hu et al. 2021): the base stays as it is, W·x becomes W·x + alpha/rank · B·A·x."""

    rank: int = Field(default=0, ge=0, le=1_024)
    """Rows of A and columns of B, r; 0 trains all weights instead. 8 to 64 are usual, with a learning rate
    ten times that of training all weights, or more."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's share is multiplied by alpha/rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear layers that get an adapter, such as `["q_proj", "v_proj"]`; `all-linear` is every
    one but the output layer."""
    merge: bool = False
    """Leave the trained model with the adapter added to its weights, a folder that needs no base beside it,
    instead of the adapter alone."""


class DropoutLoraSection(LoraSection):
    """As `[ppo.lora]`, with dropout if wanted; PPO has none, as it compares log-probs."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that are left out while it learns; the base has no dropout."""


class SftSection(TrainingSection):
    """Cross-entropy: on responses and assistant turns only, on every token of plain text."""

    epochs: int = Field(default=2, ge=1, le=1_000)
    """Passes over the demonstrations."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences of one optimizer step."""
    batching: Literal["length", "packing"] = "length"
    """How the sequences of a step are laid out: `length` puts those of like length together and pads;
    `packing` puts several behind one another in rows of `max_sequence_tokens`, their attention kept apart.
    The loss is the same."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak rate of AdamW."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises linearly; then it falls linearly to 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_sequence_tokens: int = Field(default=512, ge=2)
    """Longer demonstrations are cut, and counted; longer plain text goes on in another sequence."""
    lora: DropoutLoraSection = DropoutLoraSection()
    """An adapter on frozen weights instead of training all of them."""


class RewardModelSection(TrainingSection):
    """−log σ(r_better − r_worse), averaged over the pairs of a ranking; starts from the SFT model."""

    path: str = ""
    """Model it starts from. Empty: the SFT model of the run."""
    ensemble_size: int = Field(default=1, ge=1, le=64)
    """Models that are trained, with other draws of head and order each, and served as one."""
    epochs: int = Field(default=1, ge=1, le=1_000)
    """Passes over the comparisons."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts of one optimizer step, with all their comparisons."""
    learning_rate: float = Field(default=9e-6, gt=0)
    """Peak rate of AdamW."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises linearly; then it falls linearly to 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_sequence_tokens: int = Field(default=512, ge=2)
    """Longer pairs are cut from the left of the prompt, and counted."""


class SamplingSection(Section):
    """Sampling of training rollouts."""

    temperature: float = Field(default=1.0, gt=0, le=100)
    """Logits are divided by it, in sampling, reference and training alike. Training needs more than 0."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass kept."""
    top_k: int = Field(default=0, ge=0)
    """Most likely tokens kept; 0 keeps all."""
    max_new_tokens: int = Field(default=64, ge=1, le=131_072)
    """Tokens of an answer at most."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end an answer."""
    allow_truncated_distribution: bool = False
    """Train although top_p or top_k cut the distribution: behaviour log-probs are then those of the
    renormalised rest, and the importance ratio is biased."""

    @model_validator(mode="after")
    def _truncation_is_asked_for(self) -> Self:
        if (self.top_p < 1 or self.top_k > 0) and not self.allow_truncated_distribution:
            raise ValueError(
                "top_p < 1 or top_k > 0 biases the importance ratio; "
                "set sampling.allow_truncated_distribution = true to train with it all the same"
            )
        return self

    def params(self, *, seed: int) -> SamplingParams:
        """The parameters of one task."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_new_tokens=self.max_new_tokens,
            stop_strings=self.stop_strings,
            seed=seed,
        )


class PpoSection(TrainingSection):
    """PPO with a separate critic and a KL penalty to the reference in the reward."""

    updates: int = Field(default=100, ge=1, le=10_000_000)
    """Rollout batches trained on, from the first to the last incarnation."""
    batch_size: int = Field(default=256, ge=1)
    """Rollouts of one update."""
    mini_batch_size: int = Field(default=64, ge=1)
    """Rollouts of one optimizer step."""
    epochs: int = Field(default=1, ge=1, le=100)
    """Passes over a rollout batch. More than one reaches higher rewards sooner, and hacks sooner."""
    max_staleness: int = Field(default=0, ge=0, le=64)
    """Updates that a rollout's weights may lag behind those that train on it. 0 is synchronous PPO; above it,
    max_staleness + 1 batches are under way, and the trainer learns while they are answered."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Adam's rate for the policy, falling linearly to 0 over `updates`."""
    critic_learning_rate: float = Field(default=9e-6, gt=0)
    """Adam's rate for the critic, falling linearly to 0 over `updates`."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    critic_init: Literal["policy", "reward_model"] = "policy"
    """What the critic starts from: the policy's body and a head that says 0, or the reward model that
    `[reward] path` names, body and head (InstructGPT); its tokenizer must be the policy's."""
    kl_coefficient: float = Field(default=0.05, ge=0)
    """β of −β·(log π − log π_ref) at every token; where it starts if it adapts."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimate of the divergence that the reward is charged for; k1 is unbiased."""
    kl_control: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive` moves β so that the divergence of a whole answer comes to `kl_target` (Ziegler et al.)."""
    kl_target: float = Field(default=6.0, gt=0)
    """Divergence from the reference that adaptive control aims at, in nats per answer."""
    kl_horizon: float = Field(default=10_000.0, gt=0)
    """Answers over which adaptive control acts: β moves by at most 0.2 · batch_size/horizon in an update."""
    clip_range: float = Field(default=0.2, gt=0, lt=1)
    """Clip of the probability ratio."""
    clip_range_high: float | None = Field(default=None, gt=0)
    """Clip of the ratio above 1, if it shall be wider than below (clip-higher, DAPO); unset: `clip_range`."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound of a bad token's loss, in units of its advantage (Ye et al. 2020; 3 is usual); unset: none."""
    max_behaviour_weight: float = Field(default=2.0, ge=1)
    """With stale rollouts: π_proximal/π_behaviour, by which a token counts, is cut here."""
    value_clip_range: float = Field(default=0.2, gt=0)
    """Clip of the value's move, in standard deviations of the returns."""
    gae_gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount γ."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """λ of generalised advantage estimation."""
    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """Taken from the score of an answer that was cut off."""
    normalise_scores: bool = False
    """Scores count as standard deviations from the mean of all scores so far."""
    score_clip: float = Field(default=10.0, gt=0)
    """Scores are clipped to ± this, after `normalise_scores`."""
    whiten_rewards: bool = False
    """Scale the rewards of a batch, divergence included, to variance 1 without shifting their mean."""
    ptx_coefficient: float = Field(default=0.0, ge=0)
    """γ of PPO-ptx: weight of the cross-entropy on demonstrations in every optimizer step; 0: without."""
    ptx_batch_size: int = Field(default=32, ge=1)
    """Demonstrations of an optimizer step, with `ptx_coefficient`."""
    lora: LoraSection = LoraSection()
    """Adapters on frozen weights, one for the policy and one for the critic, instead of training them all."""

    @model_validator(mode="after")
    def _mini_batches_are_whole(self) -> Self:
        if self.batch_size % self.mini_batch_size:
            raise ValueError(
                f"mini_batch_size {self.mini_batch_size} does not divide batch_size {self.batch_size}"
            )
        return self


class GuardSection(Section):
    """Limits of the signals, against the first update: a crossed `warn` limit is told, a crossed `stop` limit
    is told as an error and, with `action = "stop"`, ends the run at its last good checkpoint.

    The stop limits fired on runs that went wrong and never on healthy ones; entropy and variety halve in
    healthy runs too. A limit that is not set never fires.
    """

    action: Literal["off", "warn", "stop"] = "warn"
    """`warn`: signals are told and training goes on; `stop`: a stop limit ends the run; `off`: only the
    figures are written."""

    length_ratio_warn_below: float | None = Field(default=None, ge=0)
    """Tokens per answer ÷ those of the first update."""
    length_ratio_warn_above: float | None = Field(default=None, ge=0)
    """Of the same, upper side."""
    length_ratio_stop_below: float | None = Field(default=0.7, ge=0)
    """Of the same, lower side."""
    length_ratio_stop_above: float | None = Field(default=1.5, ge=0)
    """Of the same, upper side."""

    repetition_warn_above: float | None = None
    """Share of 3-grams that stood in the same answer before, less three times that of the first update."""
    repetition_stop_above: float | None = 0.05
    """Of the same."""

    eos_ratio_warn_below: float | None = Field(default=None, ge=0)
    """Share of answers that end ÷ that of the first update; the drop that chance explains does not count."""
    eos_ratio_stop_below: float | None = Field(default=0.98, ge=0)
    """Of the same."""

    kl_warn_above: float | None = None
    """Nats per answer from the reference, by k1."""
    kl_stop_above: float | None = 10.0
    """Of the same."""
    kl_k3_warn_above: float | None = 20.0
    """Nats per answer by k3, whose tail is heavy."""
    kl_k3_stop_above: float | None = None
    """Of the same."""

    overconfidence_warn_above: float | None = Field(default=None, ge=0, le=1)
    """Share of fresh labels on the policy's own answers that the reward model claims to foresee, less the
    share that it does: of the rankings in `data.fresh_rankings`. At most 0.13 on 16 healthy runs of the
    quickstart."""
    overconfidence_stop_above: float | None = Field(default=0.15, ge=0, le=1)
    """Of the same."""
    fresh_label_pairs: int = Field(default=500, ge=20, le=100_000)
    """Pairs of fresh labels that are judged together, the newest; 500 know the share to ± 0.02 (one standard
    error)."""

    entropy_ratio_warn_below: float | None = Field(default=0.5, ge=0)
    """Entropy per token ÷ that of the first update."""
    entropy_ratio_stop_below: float | None = Field(default=None, ge=0)
    """Of the same."""

    distinct_ratio_warn_below: float | None = Field(default=0.5, ge=0)
    """Share of different answers ÷ that of the first update."""
    distinct_ratio_stop_below: float | None = Field(default=None, ge=0)
    """Of the same."""

    score_length_warn_above: float | None = 0.8
    """Spearman's correlation of score and length over an update's answers."""
    score_length_warn_below: float | None = None
    """Of the same, lower side."""
    score_length_stop_above: float | None = None
    """Of the same."""

    scores_outside_warn_above: float | None = Field(default=0.5, ge=0)
    """Share of scores outside the 0.5% to 99.5% quantiles of the reward model's training scores; 0.01 on its
    own data."""
    scores_outside_stop_above: float | None = Field(default=None, ge=0)
    """Of the same."""


class EvaluationSection(Section):
    """Evaluation on held-out prompts."""

    every_updates: int = Field(default=0, ge=0)
    """Updates between evaluations during PPO, through the services; the last update is always evaluated, and
    the best checkpoint becomes `policy_best/`. 0 never evaluates."""
    max_seconds: float = Field(default=120.0, gt=0, le=86_400)
    """An evaluation during PPO that takes longer is given up; training goes on."""
    num_prompts: int = Field(default=256, ge=1)
    """Answers compared, over as many held-out prompts as there are."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    """Sampling temperature; 0 is greedy."""
    num_report_samples: int = Field(default=10, ge=0, le=1_000)
    """Answers shown side by side in the report."""


class CheckpointSection(Section):
    """Checkpoints of PPO, in `checkpoints/` of the run's folder."""

    every_updates: int = Field(default=5, ge=1)
    """Updates between checkpoints; the last update always writes one."""
    keep: int = Field(default=2, ge=1, le=1_000)
    """Newest valid checkpoints kept."""
