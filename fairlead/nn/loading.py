"""Loading what a run needs from a local folder or the hub: tokenizer, language model, reward model.

Every failure is a ModelLoadError that says which model, why, and what to do. Remote code is never run.
A reward model is what transformers calls AutoModelForSequenceClassification with one label; ours writes the
same, plus `fairlead_reward_bias` in its config, so that other tools can load it too.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from fairlead.config.compute import ComputeSection, Device
from fairlead.errors import ModelLoadError
from fairlead.nn.heads import ScalarHead

logger = logging.getLogger(__name__)

REWARD_BIAS = "fairlead_reward_bias"
"""Key of the reward model's bias in its config.json."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, ImportError, AttributeError)


def torch_device(device: Device) -> torch.device:
    """The device that a section asks for.

    Raises:
        ModelLoadError: if it asks for a GPU and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError("device = 'cuda', but torch sees no GPU: use device = 'auto' or 'cpu'")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def torch_dtype(section: ComputeSection) -> torch.dtype:
    """The torch type of a section's `dtype`."""
    return _DTYPES[section.dtype]


def set_threads(section: ComputeSection) -> None:
    """Applies a section's `threads`; 0 leaves torch as it is."""
    if section.threads:
        torch.set_num_threads(section.threads)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id.

    Raises:
        ModelLoadError: if there is none.
    """
    _check_path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except _LOAD_ERRORS as error:
        raise ModelLoadError(f"cannot load the tokenizer of {path!r}: {_first_line(error)}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over all that decides how text becomes ids: vocabulary, rules, special and added tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        definition = json.loads(backend.to_str())
        definition.pop("padding", None)
        definition.pop("truncation", None)
    else:
        definition = {"vocabulary": tokenizer.get_vocab()}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    text = json.dumps([definition, special], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a text: the tokenizer's EOS and those of the model's generation config."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        value: Any = getattr(source, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or [])
    return frozenset(found)


def max_sequence_tokens(model: PreTrainedModel, configured: int) -> int:
    """The configured limit, or the model's own where none is configured; never above the model's own."""
    own = next(
        (
            int(value)
            for name in ("max_position_embeddings", "n_positions", "n_ctx")
            if (value := getattr(model.config, name, None))
        ),
        2_048,
    )
    return min(configured, own) if configured else own


def load_causal_lm(path: str, section: ComputeSection) -> PreTrainedModel:
    """A causal language model in evaluation mode on the section's device and dtype.

    Raises:
        ModelLoadError: if it is missing, truncated, or weights are missing from the checkpoint.
    """
    model = _load(AutoModelForCausalLM, path, section, {})
    return _ready(model, section)


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A language model's body and a scalar head; shapes: B batch, T positions."""

    body: PreTrainedModel
    """Transformer without unembedding."""
    head: ScalarHead
    """H → 1, float32."""
    model: PreTrainedModel
    """The sequence-classification model that both belong to; what is saved."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.head.weight.device

    def scores(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Scalar of each right-padded row, read at its last real token.

        Args:
            tokens_BT: ids, right-padded with any id.
            lengths_B: number of real tokens of each row, at least 1.

        Returns:
            float32 [B].
        """
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        mask_BT = (positions_T < lengths_B[:, None]).long()
        hidden_BTH = self.body(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False)[0]
        rows_B = torch.arange(tokens_BT.shape[0], device=tokens_BT.device)
        scores_B: Tensor = self.head(hidden_BTH[rows_B, lengths_B - 1])
        return scores_B

    def parameters(self) -> list[nn.Parameter]:
        """Every trainable parameter of body and head."""
        return [*self.body.parameters(), *self.head.parameters()]

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes a folder that this module and AutoModelForSequenceClassification load."""
        classifier = _score_layer(self.model)
        with torch.no_grad():
            classifier.weight.copy_(self.head.weight.to(classifier.weight.dtype))
        setattr(self.model.config, REWARD_BIAS, self.head.bias.item())
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load_reward_model(path: str, section: ComputeSection, *, fresh_head: bool = False) -> RewardModel:
    """A one-label sequence-classification model.

    Args:
        path: folder or hub id.
        section: device and dtype.
        fresh_head: start from a causal language model with a random head (std 1/√(H+1)); without it a
            checkpoint that has no head is refused.

    Raises:
        ModelLoadError: if it cannot be loaded, has another number of labels, or has no head.
    """
    model = _load(
        AutoModelForSequenceClassification,
        path,
        section,
        {"num_labels": 1} if fresh_head else {},
        allowed_missing=("score.weight",) if fresh_head else (),
    )
    if model.config.num_labels != 1:
        raise ModelLoadError(f"{path!r} has {model.config.num_labels} labels; a reward model has 1")
    layer = _score_layer(model)
    head = ScalarHead(layer.weight.shape[1])
    if not fresh_head:
        with torch.no_grad():
            head.weight.copy_(layer.weight)
            head.bias.fill_(float(getattr(model.config, REWARD_BIAS, 0.0)))
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    return RewardModel(body=body, head=head.to(torch_device(section.device)), model=_ready(model, section))


def weights_digest(model: nn.Module) -> str:
    """First 12 hexadecimal digits of the SHA-256 over a model's parameters, its version as a reward model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _score_layer(model: PreTrainedModel) -> nn.Linear:
    for name in ("score", "classifier"):
        layer = getattr(model, name, None)
        if isinstance(layer, nn.Linear):
            return layer
    raise ModelLoadError(
        f"{type(model).__name__} keeps its score somewhere else than in a linear `score` layer; "
        "this architecture needs an adapter"
    )


def _ready(model: PreTrainedModel, section: ComputeSection) -> PreTrainedModel:
    nn.Module.to(model, torch_device(section.device))
    nn.Module.eval(model)
    return model


def _load(
    auto: type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification],
    path: str,
    section: ComputeSection,
    extra: dict[str, Any],
    allowed_missing: tuple[str, ...] = (),
) -> PreTrainedModel:
    _check_path(path)
    loader: Any = auto
    try:
        AutoConfig.from_pretrained(path, trust_remote_code=False)
        with _quiet_transformers():
            model, report = loader.from_pretrained(
                path, trust_remote_code=False, dtype=torch_dtype(section), output_loading_info=True, **extra
            )
    except _LOAD_ERRORS as error:
        raise ModelLoadError(
            f"cannot load the model {path!r}: {_first_line(error)}. Is the folder complete, "
            "with config.json and *.safetensors?"
        ) from error
    missing = sorted(set(report["missing_keys"]) - set(allowed_missing))
    if missing:
        hint = (
            " It looks like a language model without a reward head: train one with `fairlead reward-model`."
            if any(name.startswith(("score", "classifier")) for name in missing)
            else ""
        )
        raise ModelLoadError(f"{path!r} lacks the weights {', '.join(missing[:5])}.{hint}")
    assert isinstance(model, PreTrainedModel)
    return model


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars, no load report: what matters of it is raised by `_load`."""
    settings: Any = transformers_logging
    verbosity, bars = settings.get_verbosity(), settings.is_progress_bar_enabled()
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        settings.set_verbosity(verbosity)
        if bars:
            settings.enable_progress_bar()


def _check_path(path: str) -> None:
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if not path or (looks_local and not Path(path).expanduser().is_dir()):
        raise ModelLoadError(f"there is no model folder {path!r}: give a folder that exists, or a hub id")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
