"""The reward model: a causal model's body with a scalar head at the last token, or a whole encoder.

Loads an AutoModelForSequenceClassification of transformers with one label, from a folder or the hub. Models
that Fairlead trains have the same format, plus `fairlead_reward_bias` in the config, so other tools can load
them. Does not know text.

Shapes: B batch, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from fairlead.config.base import ComputeSection
from fairlead.config.gguf import gguf_file
from fairlead.errors import ModelLoadError
from fairlead.nn.heads import ScalarHead
from fairlead.nn.loading import load_config, load_pretrained, ready

REWARD_BIAS = "fairlead_reward_bias"
"""Key of the bias in config.json; only models trained by Fairlead have it."""
REWARD_TEMPERATURE = "fairlead_reward_temperature"
"""Key of the temperature in config.json: scores divided by it are calibrated. Absent if none was fitted."""
REWARD_ANSWER_END = "fairlead_answer_end"
"""Key in config.json of the token ids that end an answer: {"conversation": [ids], "text": [ids]}. Models that
were trained before it existed, and those of the hub, lack it."""

_TOLERANCE = 1e-2
"""Separates two ways of reading a score: bfloat16 moves a score by less, another way by far more."""

_CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
_CLASSIFIERS = frozenset(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A language model's body and a scalar head."""

    body: PreTrainedModel
    """Transformer without the unembedding."""
    head: ScalarHead
    """H → 1, float32."""
    model: PreTrainedModel
    """The sequence-classification model that contains both, and that is saved."""
    is_encoder: bool = False
    """Whether scores come from the model's own forward pass instead of `head` at the last token."""

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.head.weight.device

    @property
    def is_ours(self) -> bool:
        """Whether Fairlead trained the model."""
        return hasattr(self.model.config, REWARD_BIAS)

    @property
    def answer_end(self) -> object:
        """How answers end in the model's training, as saved; None if its configuration does not say."""
        return getattr(self.model.config, REWARD_ANSWER_END, None)

    @property
    def temperature(self) -> float:
        """Divisor that calibrates scores; 0 if it was not fitted."""
        found = getattr(self.model.config, REWARD_TEMPERATURE, None)
        return float(found) if isinstance(found, int | float) and 0 < found < float("inf") else 0.0

    def scores(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the scalar of each right-padded row, read at its last real token or as the encoder reads it.

        Args:
            tokens_BT: ids, right-padded with any id.
            lengths_B: number of real tokens of each row, at least 1.

        Returns:
            float32 [B].
        """
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        mask_BT = (positions_T < lengths_B[:, None]).long()
        if self.is_encoder:
            logits_B1: Tensor = self.model(input_ids=tokens_BT, attention_mask=mask_BT).logits
            return logits_B1[:, 0].float()
        hidden_BTH = self.body(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False)[0]
        rows_B = torch.arange(tokens_BT.shape[0], device=tokens_BT.device)
        scores_B: Tensor = self.head(hidden_BTH[rows_B, lengths_B - 1])
        return scores_B

    def parameters(self) -> list[nn.Parameter]:
        """Return every trainable parameter of body and head."""
        return [*self.body.parameters(), *self.head.parameters()]

    def set_temperature(self, temperature: float | None) -> None:
        """Set the temperature that is saved with the weights; None removes that of an earlier training."""
        if temperature is not None:
            setattr(self.model.config, REWARD_TEMPERATURE, temperature)
        elif hasattr(self.model.config, REWARD_TEMPERATURE):
            delattr(self.model.config, REWARD_TEMPERATURE)

    def set_answer_end(self, answer_end: Mapping[str, list[int]]) -> None:
        """Set the ids that end an answer, which are saved with the weights."""
        setattr(self.model.config, REWARD_ANSWER_END, dict(answer_end))

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a folder that this module and AutoModelForSequenceClassification can load."""
        layer = _score_layer(self.model)
        assert layer is not None, "only models with our head are trained and saved"
        bias = self.head.bias.detach()
        with torch.no_grad():
            layer.weight.copy_(self.head.weight.to(layer.weight.dtype))
            if layer.bias is not None:
                bias = bias - layer.bias.float()
        setattr(self.model.config, REWARD_BIAS, bias.item())
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load_reward_model(path: str, section: ComputeSection, *, fresh_head: bool = False) -> RewardModel:
    """Load a sequence-classification model with one label.

    Args:
        path: folder or hub id.
        section: device and dtype.
        fresh_head: accept a causal language model and draw a random head (std 1/√(H+1)); otherwise a
            checkpoint without a head is rejected.

    Raises:
        ModelLoadError: if it cannot be loaded, has no head or more than one label, or reads its score neither
            from the last token nor as an encoder does.
    """
    if fresh_head:
        model = load_pretrained(
            AutoModelForSequenceClassification, path, section, allowed_missing=("score.weight",), num_labels=1
        )
    else:
        _check_kind(path, load_config(path))
        model = load_pretrained(AutoModelForSequenceClassification, path, section)
    nn.Module.eval(model)
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    layer = _score_layer(model)
    if layer is None or not _reads_last_token(model, body, layer):
        if fresh_head or not _ignores_padding(model):
            raise ModelLoadError(
                f"{type(model).__name__} of {path!r} computes its score neither from the last token's hidden "
                "state nor as an encoder without segments does: use a sequence-classification model made "
                "from a causal language model"
            )
        head = ScalarHead(1, std=0.0)
        return RewardModel(body, head.to(ready(model, section).device), model, is_encoder=True)
    head = ScalarHead(layer.weight.shape[1])
    if not fresh_head:
        with torch.no_grad():
            head.weight.copy_(layer.weight)
            head.bias.fill_(float(getattr(model.config, REWARD_BIAS, 0.0)))
            if layer.bias is not None:
                head.bias.add_(layer.bias)
    return RewardModel(body, head.to(ready(model, section).device), model)


def _check_kind(path: str, config: PreTrainedConfig) -> None:
    """Reject models that would load but give meaningless scores, before their weights are read."""
    made_for = next(iter(config.architectures or ()), "")
    if gguf_file(path) is not None:
        made_for = "the model in a GGUF file"
    if made_for in _CAUSAL or gguf_file(path) is not None:
        raise ModelLoadError(
            f"{path!r} lacks the weights score.weight: {made_for} is a language model without a reward head. "
            "Train one with `fairlead reward-model`, or give a sequence-classification model with one label"
        )
    if made_for and made_for not in _CLASSIFIERS:
        raise ModelLoadError(
            f"{path!r} was made for {made_for}, which is custom code and not part of transformers: its "
            "score comes from more than a linear layer at the last token, and remote code is never run. "
            "Give a sequence-classification model with one label"
        )
    if config.num_labels != 1:
        raise ModelLoadError(f"{path!r} has {config.num_labels} labels; a reward model has 1")


@torch.inference_mode()
def _reads_last_token(model: PreTrainedModel, body: PreTrainedModel, layer: nn.Linear) -> bool:
    """Compare our reading with the model's own forward pass, without our bias."""
    pad = model.config.pad_token_id
    tokens_BT = torch.tensor([[token for token in range(8) if token != pad]])
    theirs = float(model(input_ids=tokens_BT).logits[0, 0])
    hidden_H = body(input_ids=tokens_BT)[0][0, -1]
    if hidden_H.shape[-1] != layer.weight.shape[1]:
        return False
    # Damaged weights give NaN on both sides; the first score reports that.
    return not abs(float(layer(hidden_H)[0]) - theirs) > _TOLERANCE * max(1.0, abs(theirs))


@torch.inference_mode()
def _ignores_padding(model: PreTrainedModel) -> bool:
    """Return whether masked tokens after a row leave its score unchanged, and no segment ids are needed."""
    if (getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        return False
    tokens_BT = torch.tensor([[*range(1, 6), filler, filler] for filler in (0, 1, 7)])
    mask_BT = torch.tensor([[1] * 5 + [0] * 2] * 3)
    unpadded = float(model(input_ids=tokens_BT[:1, :5]).logits[0, 0])
    padded_B = model(input_ids=tokens_BT, attention_mask=mask_BT).logits[:, 0].float()
    return bool(((padded_B - unpadded).abs() <= _TOLERANCE * max(1.0, abs(unpadded))).all())


def _score_layer(model: PreTrainedModel) -> nn.Linear | None:
    layers = (getattr(model, name, None) for name in ("score", "classifier"))
    return next((layer for layer in layers if isinstance(layer, nn.Linear)), None)
