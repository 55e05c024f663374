"""The reward model: a causal model's body with a scalar head at the last token, or a whole encoder.

Loads an AutoModelForSequenceClassification of transformers with one label, from a folder or the hub. Models
that Fairlead trains have the same format, plus `fairlead_reward_bias` in the config, so other tools can load
them. Does not know text.

Shapes: B batch, T positions.
"""

from __future__ import annotations

import json
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
from transformers.utils.hub import cached_file

from fairlead.config.base import ComputeSection
from fairlead.errors import ModelLoadError
from fairlead.nn import adapters
from fairlead.nn.failures import load_failure
from fairlead.nn.gguf import gguf_file
from fairlead.nn.heads import ScalarHead
from fairlead.nn.loading import Loader, load_config, load_pretrained, ready

REWARD_BIAS = "fairlead_reward_bias"
"""Key of the bias in config.json; only models trained by Fairlead have it."""
REWARD_TEMPERATURE = "fairlead_reward_temperature"
"""Key of the temperature in config.json: scores divided by it are calibrated. Absent if none was fitted."""
REWARD_ANSWER_END = "fairlead_answer_end"
"""Key in config.json of the token ids that end an answer: {"conversation": [ids], "text": [ids]}. Models that
were trained before it existed, and those of the hub, lack it."""

REWARD_DEVIATION = "fairlead_score_deviation"
"""Key in config.json of the standard deviation of the scores of the answers that the model was trained on; of
an ensemble, that of the combined scores. Absent from models of the hub."""

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
        return saved_temperature(self.model.config)

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
        """Return every trainable parameter of body and head; with adapters, those and the head."""
        both = (*self.body.parameters(), *self.head.parameters())
        return [parameter for parameter in both if parameter.requires_grad]

    def set_temperature(self, temperature: float | None) -> None:
        """Set the temperature that is saved with the weights; None removes that of an earlier training."""
        if temperature is not None:
            setattr(self.model.config, REWARD_TEMPERATURE, temperature)
        elif hasattr(self.model.config, REWARD_TEMPERATURE):
            delattr(self.model.config, REWARD_TEMPERATURE)

    def set_answer_end(self, answer_end: Mapping[str, list[int]]) -> None:
        """Set the ids that end an answer, which are saved with the weights."""
        setattr(self.model.config, REWARD_ANSWER_END, dict(answer_end))

    def set_deviation(self, deviation: float) -> None:
        """Set the standard deviation of scores that is saved with the weights."""
        setattr(self.model.config, REWARD_DEVIATION, deviation)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase, *, merge: bool = True) -> None:
        """Write a folder that this module can load.

        AutoModelForSequenceClassification can load it too; without `merge`, a model with adapters is written
        as peft writes an adapter with a head, next to the configuration.
        """
        head = self.fill_head(self.head.weight.detach(), self.head.bias.detach())
        adapters.save(self.model, folder, merge=merge, head=head)
        self.save_settings(folder, tokenizer, merge=merge)

    def fill_head(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """Put a head into the model, and its bias into the configuration; return its weight by its name.

        Args:
            weight: [1, H].
            bias: [1].
        """
        layer = _score_layer(self.model)
        assert layer is not None, "only models with our head are trained and saved"
        with torch.no_grad():
            layer.weight.copy_(weight.to(layer.weight.dtype))
            if layer.bias is not None:
                bias = bias - layer.bias.float()
        setattr(self.model.config, REWARD_BIAS, bias.item())
        name = next(name for name in adapters.HEADS if getattr(self.model, name, None) is layer)
        return {f"{name}.weight": weight}

    def save_settings(self, folder: Path, tokenizer: PreTrainedTokenizerBase, *, merge: bool) -> None:
        """Write what belongs into the folder beside the weights."""
        if adapters.is_adapted(self.model) and not merge:
            self.model.config.architectures = [type(self.model).__name__]
            self.model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load_reward_model(
    path: str, section: ComputeSection, *, fresh_head: bool = False, load: Loader | None = None
) -> RewardModel:
    """Load a sequence-classification model with one label.

    Args:
        path: folder or hub id.
        section: device and dtype.
        fresh_head: accept a causal language model and draw a random head (std 1/√(H+1)); otherwise a
            checkpoint without a head is rejected.
        load: reads the weights; None: `load_pretrained`.

    Raises:
        ModelLoadError: if it cannot be loaded, has no head or more than one label, or reads its score neither
            from the last token nor as an encoder does.
    """
    model = _load(path, section, load or load_pretrained, fresh_head=fresh_head)
    nn.Module.eval(model)
    layer = _score_layer(model)
    if layer is None or not _reads_last_token(model):
        if fresh_head or not _ignores_padding(model):
            raise _reads_otherwise(path, model)
        head = ScalarHead(1, std=0.0)
        head = head.to(ready(model, section).device)
        return RewardModel(_body(model), head, model, is_encoder=True)
    found = _with_head(model, layer, fresh_head=fresh_head)
    found.head.to(ready(model, section).device)
    return found


def load_divided_reward_model(
    path: str, section: ComputeSection, load: Loader, *, fresh_head: bool = False
) -> RewardModel:
    """Load a model as `load_reward_model` does, of which this process may hold only some rows.

    It cannot compute yet: `check_reads_last_token` follows when it can. Encoders are not trained.

    Args:
        path: folder or hub id.
        section: dtype.
        load: reads the weights.
        fresh_head: see `load_reward_model`.

    Raises:
        ModelLoadError: if it cannot be loaded, or has no head.
    """
    model = _load(path, section, load, fresh_head=fresh_head)
    nn.Module.eval(model)
    layer = _score_layer(model)
    if layer is None:
        raise _reads_otherwise(path, model)
    return _with_head(model, layer, fresh_head=fresh_head)


def check_reads_last_token(path: str, model: PreTrainedModel) -> None:
    """Check that the score of a model is its head's output at the last token.

    Raises:
        ModelLoadError: if it is not.
    """
    layer = _score_layer(model)
    assert layer is not None
    nn.Module.to(layer, model.device)
    if not _reads_last_token(model):
        raise _reads_otherwise(path, model)


def _reads_otherwise(path: str, model: PreTrainedModel) -> ModelLoadError:
    return ModelLoadError(
        f"{type(model).__name__} of {path!r} computes its score neither from the last token's hidden "
        "state nor as an encoder without segments does: use a sequence-classification model made "
        "from a causal language model"
    )


def _with_head(model: PreTrainedModel, layer: nn.Linear, *, fresh_head: bool) -> RewardModel:
    head = ScalarHead(layer.weight.shape[1])
    if not fresh_head:
        with torch.no_grad():
            head.weight.copy_(layer.weight)
            head.bias.fill_(float(getattr(model.config, REWARD_BIAS, 0.0)))
            if layer.bias is not None:
                head.bias.add_(layer.bias)
    return RewardModel(_body(model), head, model)


def _body(model: PreTrainedModel) -> PreTrainedModel:
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    return body


def _load(path: str, section: ComputeSection, load: Loader, *, fresh_head: bool) -> PreTrainedModel:
    config = load_config(path)
    missing: tuple[str, ...] | None = ("score.weight",) if fresh_head else None
    if missing is None and adapters.base_of(path) is not None:
        missing = _head_of_adapter(path)
    if missing is not None:
        model = load(AutoModelForSequenceClassification, path, section, allowed_missing=missing, num_labels=1)
        if not fresh_head:
            _apply_own_settings(model, path)
        return model
    check_kind(path, config)
    return load(AutoModelForSequenceClassification, path, section)


def _head_of_adapter(path: str) -> tuple[str, ...] | None:
    """Return the names of the weights that an adapter brings for a head; None if it has no head."""
    shapes = adapters.replaced(path)
    heads = [shape for name, shape in shapes.items() if name.partition(".")[0] in adapters.HEADS]
    if not heads:
        return None
    # The last layer of a head of several layers has the fewest rows.
    labels = min(shape[0] for shape in heads)
    if labels != 1:
        raise ModelLoadError(f"{path!r} has {labels} labels; a reward model has 1")
    return tuple(shapes)


def _apply_own_settings(model: PreTrainedModel, path: str) -> None:
    """Set Fairlead's keys from the configuration next to an adapter; its base lacks them."""
    try:
        file = cached_file(path, "config.json", _raise_exceptions_for_missing_entries=False)
        found = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError) as error:
        raise load_failure(f"the configuration of {path!r}", path, error) from error
    for key in (REWARD_BIAS, REWARD_TEMPERATURE, REWARD_ANSWER_END, REWARD_DEVIATION):
        if hasattr(model.config, key):
            delattr(model.config, key)
        if key in found:
            setattr(model.config, key, found[key])


def saved_temperature(config: PreTrainedConfig) -> float:
    """Return the divisor that calibrates the scores of a model; 0 if it was not fitted."""
    found = getattr(config, REWARD_TEMPERATURE, None)
    return float(found) if isinstance(found, int | float) and 0 < found < float("inf") else 0.0


def check_kind(path: str, config: PreTrainedConfig) -> None:
    """Reject models that would load but give meaningless scores, before their weights are read.

    Raises:
        ModelLoadError: if the model is not a sequence classifier of transformers with one label.
    """
    made_for = next(iter(config.architectures or ()), "")
    if gguf_file(path) is not None:
        made_for = "the model in a GGUF file"
    if made_for in _CAUSAL or gguf_file(path) is not None:
        is_adapter = adapters.base_of(path) is not None
        remedy = ', or save the head with the adapter (modules_to_save = ["score"])' if is_adapter else ""
        what = f"an adapter of {made_for}" if is_adapter else made_for
        raise ModelLoadError(
            f"{path!r} lacks the weights score.weight: {what} is a language model without a reward head. "
            "Train one with `fairlead reward-model`, or give a sequence-classification model with one label"
            f"{remedy}"
        )
    if made_for and made_for not in _CLASSIFIERS:
        raise ModelLoadError(
            f"{path!r} was made for {made_for}, which is custom code and not part of transformers: its "
            "score comes from more than a linear layer at the last token, and remote code is never run. "
            "Give a sequence-classification model with one label"
        )
    if config.num_labels != 1:
        raise ModelLoadError(f"{path!r} has {config.num_labels} labels; a reward model has 1")


@torch.no_grad()  # weights that are gathered in inference mode could not be trained
def _reads_last_token(model: PreTrainedModel) -> bool:
    """Compare our reading with the model's own forward pass, without our bias."""
    layer = _score_layer(model)
    assert layer is not None
    pad = model.config.pad_token_id
    tokens_BT = torch.tensor([[token for token in range(8) if token != pad]], device=model.device)
    theirs = float(model(input_ids=tokens_BT).logits[0, 0])
    hidden_H = _body(model)(input_ids=tokens_BT)[0][0, -1]
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
    layers = (getattr(model, name, None) for name in adapters.HEADS)
    return next((layer for layer in layers if isinstance(layer, nn.Linear)), None)
