"""The section of the preference stage: DPO and its relatives, which train a policy without a reward model."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fairlead.config.training import DropoutLoraSection, LearningRateSchedule, TrainingSection

PER_TOKEN = frozenset({"ipo", "length_normalised", "simpo"})
"""Values of `preference.loss` that divide the log-prob of an answer by its number of tokens."""
_SIGMOID = frozenset({"sigmoid", "length_normalised", "simpo"})
"""Values of `preference.loss` that are a −log σ of a margin."""


class PreferenceSection(TrainingSection):
    """Training of a policy on comparisons, or on answers with a thumb, without a reward model (`fairlead
    dpo`). The reference is the model that it starts from; its log-probs are computed once and kept in the
    run's folder.
    """

    path: str = ""
    """Local folder, GGUF file or Hugging Face id of the model to start from. Empty: the SFT model of the
    run."""
    loss: Literal["sigmoid", "ipo", "length_normalised", "simpo", "kto"] = "sigmoid"
    """Loss: `sigmoid` is DPO, −log σ(β·(Δ of the preferred answer − Δ of the other)) with Δ = log π − log
    π_ref of an answer; `length_normalised` the same with Δ per token; `simpo` with log π per token and no
    reference; `ipo` the squared distance of the difference of Δ per token from 1/(2β); `kto` learns from
    single answers, in `data.thumbs`, or the best and the worst of each ranking if there are none."""
    rankings: Literal["pairs", "plackett_luce"] = "pairs"
    """Rankings of more than two answers: the mean loss of all pairs that are not ties, or the likelihood that
    each answer is chosen before those that it beats (Plackett–Luce). The same for two answers."""
    beta: float = Field(default=0.1, gt=0)
    """β, the strength of the tie to the reference: smaller values allow larger changes. Usual: 0.1 with
    `sigmoid` and `kto`, 0.1 to 1 with `ipo`, 2 to 10 with `length_normalised` and `simpo`, which count per
    token."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed probability that a comparison is wrong (conservative DPO); with the losses that have a σ."""
    target_margin: float = Field(default=0.0, ge=0)
    """Margin γ that the difference within the σ must exceed, in its own unit (SimPO, usually 0.5 to 1.5)."""
    sft_coefficient: float = Field(default=0.0, ge=0)
    """Coefficient α of the negative log-prob per token of the best answers, added to the loss (RPO, usually
    1): it keeps preferred answers likely."""
    desirable_weight: float = Field(default=1.0, ge=0)
    """Weight of good answers with `kto`. If good and bad ones are unequally many, let weight × number be
    similar."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """Weight of bad answers with `kto`."""
    epochs: int = Field(default=1, ge=1, le=1_000)
    """Number of passes over the data."""
    batch_size: int = Field(default=32, ge=1)
    """Rankings per optimizer step, each with all its answers; answers with `kto`."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    learning_rate_schedule: LearningRateSchedule = "linear"
    """Learning rate after the warm-up: `linear` and `cosine` fall to 0 at the last step, `constant` stays."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the steps during which the learning rate rises linearly."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Maximum norm of the gradient; larger gradients are clipped."""
    max_sequence_tokens: int = Field(default=512, ge=2)
    """Maximum length of prompt and answer, in tokens. A longer prompt loses its beginning, the same for all
    its answers; an answer that leaves no space for the prompt is left out."""
    lora: DropoutLoraSection = DropoutLoraSection()
    """Train an adapter on frozen weights, which are the reference, instead of all weights."""

    @property
    def is_paired(self) -> bool:
        """Whether the loss compares answers to the same prompt."""
        return self.loss != "kto"

    @model_validator(mode="after")
    def _check_effects(self) -> Self:
        """Refuse settings that would have no effect."""
        for name, losses in (
            ("label_smoothing", _SIGMOID),
            ("target_margin", _SIGMOID),
            ("sft_coefficient", _SIGMOID | {"ipo"}),
            ("desirable_weight", {"kto"}),
            ("undesirable_weight", {"kto"}),
        ):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default and self.loss not in losses:
                raise ValueError(
                    f"{name} {value} has no effect with loss = {self.loss!r}: remove it, or set loss to "
                    f"{' or '.join(repr(loss) for loss in sorted(losses))}"
                )
        if self.rankings == "plackett_luce":
            if self.loss not in _SIGMOID:
                raise ValueError(
                    f"rankings = 'plackett_luce' needs loss = 'sigmoid', 'length_normalised' or 'simpo', not "
                    f"{self.loss!r}"
                )
            for name in ("label_smoothing", "target_margin"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} {getattr(self, name)} applies to pairs: set rankings = 'pairs', or remove it"
                    )
        if not (self.desirable_weight or self.undesirable_weight):
            raise ValueError("desirable_weight and undesirable_weight are both 0: nothing would be learnt")
        return self
