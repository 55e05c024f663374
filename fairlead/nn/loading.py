"""Load tokenizers and language models from a local folder, a GGUF file or the hub.

Every failure is a ModelLoadError that names the model, the cause and a remedy. Remote code is never run.
Reward models are loaded by reward_model.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from fairlead.config.base import ComputeSection, Device
from fairlead.errors import ModelLoadError
from fairlead.nn import adapters
from fairlead.nn.checks import check_finite, check_index, check_unread, refuse_pickle
from fairlead.nn.failures import load_failure
from fairlead.nn.gguf import gguf_file
from fairlead.nn.tensor_parallel import whole

logger = logging.getLogger(__name__)

# Otherwise transformers silently loads a hub model with only .bin weights from a pull request of a bot.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_LOAD_ERRORS = (
    MemoryError,
    OSError,
    ValueError,
    KeyError,
    TypeError,  # of a configuration with values of another type, or too large
    RuntimeError,
    SafetensorError,
    ImportError,
    AttributeError,
    IndexError,  # of damaged GGUF files, as the next
    struct.error,
)

AutoClass = type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification]
"""The class that a model is loaded as."""


def torch_device(device: Device) -> torch.device:
    """Return the device of a section; on a GPU, also disable cuDNN attention for the process.

    cuDNN builds a plan for every new shape, some milliseconds each, and nearly every shape is new here:
    answers grow by a token per step, and batches are packed to a token budget (docs/benchmarks.md, "On a
    GPU").

    Raises:
        ModelLoadError: if the section requires a GPU and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError("device = 'cuda', but torch finds no GPU: use device = 'auto' or 'cpu'")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device("cuda")


def torch_dtype(section: ComputeSection) -> torch.dtype:
    """Return the torch type of a section's `dtype`."""
    return _DTYPES[section.dtype]


def set_threads(section: ComputeSection) -> None:
    """Apply a section's `threads`; 0 leaves torch's setting unchanged."""
    if section.threads:
        torch.set_num_threads(section.threads)


def require_determinism() -> None:
    """Make operations without a deterministic implementation raise RuntimeError, for the whole process.

    Call it before any model runs. Threads and batch composition are set by the configuration
    (`fairlead/config/determinism.py`).
    """
    torch.use_deterministic_algorithms(True)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; for an adapter without one, that of its base.

    A `tokenizer.json` in the folder of a GGUF file is read instead of the tokenizer in the file.

    Raises:
        ModelLoadError: if there is none.
    """
    _check_path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            **_source(path, own="tokenizer.json"), trust_remote_code=False
        )
    except _LOAD_ERRORS as error:
        base = adapters.base_of(path)
        if base is not None:
            return load_tokenizer(base)
        raise load_failure(f"the tokenizer of {path!r}", path, error) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 over everything that decides how text becomes ids: vocabulary, rules, special
    tokens.

    The padding token is excluded, since it is never read.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        definition = json.loads(backend.to_str())
        definition.pop("padding", None)
        definition.pop("truncation", None)
    else:
        definition = {"vocabulary": tokenizer.get_vocab()}
    special = {
        name: str(token) for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"
    }
    text = json.dumps([definition, special], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a text: the tokenizer's EOS and those of the model's generation config."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        value: Any = getattr(source, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or [])
    return frozenset(found)


def max_sequence_tokens(model: PreTrainedModel | PreTrainedConfig, configured: int) -> int:
    """Return the configured limit, at most the model's own; the model's own if none is configured.

    A model that computes long sequences by other positions than short ones is limited to the short ones,
    because the values of a sequence would depend on the others in its batch, and on how much of it is cached.
    """
    config = model.config if isinstance(model, PreTrainedModel) else model
    own = next(
        (
            int(value)
            for name in ("max_position_embeddings", "n_positions", "n_ctx")
            if (value := getattr(config, name, None))
        ),
        2_048,
    )
    limit = min(configured, own) if configured else own
    steady = min([limit, *_changes_of_positions(config)])
    if steady < limit:
        logger.warning(
            "sequences are limited to %d tokens instead of %d: %s computes longer ones by other positions",
            steady,
            limit,
            type(model).__name__,
        )
    return steady


def _changes_of_positions(config: PreTrainedConfig) -> Iterator[int]:
    """Yield the lengths of sequences after which a model changes what it computes of all positions."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (parameters, *parameters.values()):
        if isinstance(rope, dict) and rope.get("rope_type") == "longrope":
            own = getattr(config, "original_max_position_embeddings", None)
            length = rope.get("original_max_position_embeddings") or own
            if isinstance(length, int):
                yield length
    # Llama 4 scales queries by the column in a batch instead of the position.
    if getattr(config, "attn_temperature_tuning", False):
        yield int(config.floor_scale) - 1


class Loader(Protocol):
    """Loads a model as `load_pretrained` does."""

    def __call__(
        self,
        auto: AutoClass,
        path: str,
        section: ComputeSection,
        *,
        allowed_missing: Collection[str] = (),
        **settings: object,
    ) -> PreTrainedModel:
        """See `load_pretrained`."""


def load_causal_lm(path: str, section: ComputeSection, *, load: Loader | None = None) -> PreTrainedModel:
    """Load a causal language model in evaluation mode on the section's device and dtype.

    Args:
        path: folder or hub id.
        section: device and dtype.
        load: reads the weights; None: `load_pretrained`.

    Raises:
        ModelLoadError: if it is missing, truncated, or weights are missing from the checkpoint.
    """
    return ready((load or load_pretrained)(AutoModelForCausalLM, path, section), section)


def load_config(path: str) -> PreTrainedConfig:
    """Load the configuration of a model folder or hub id; for an adapter, that of its base.

    Raises:
        ModelLoadError: if there is none, or transformers does not support its kind.
    """
    _check_path(path)
    base = adapters.base_of(path)
    if base is not None:
        try:
            return load_config(base)
        except ModelLoadError as error:
            raise ModelLoadError(f"the adapter {path!r} needs its base: {error}") from error
    try:
        config = AutoConfig.from_pretrained(**_source(path), trust_remote_code=False)
    except _LOAD_ERRORS as error:
        raise load_failure(f"the model {path!r}", path, error) from error
    assert isinstance(config, PreTrainedConfig)
    return config


def causal_lm_without_weights(path: str) -> PreTrainedModel:
    """Return a language model without values; see `without_weights`."""
    return without_weights(AutoModelForCausalLM, path)


def without_weights(auto: AutoClass, path: str, **settings: object) -> PreTrainedModel:
    """Return a model on torch's meta device: its modules, configuration and shapes, but no values.

    Args:
        auto: the class that it would be loaded as.
        path: folder or hub id.
        settings: changes to its configuration.

    Raises:
        ModelLoadError: if its configuration cannot be read.
    """
    config = load_config(path)
    for name, value in settings.items():
        setattr(config, name, value)
    try:
        with torch.device("meta"):
            maker: Any = auto
            model = maker.from_config(config, trust_remote_code=False)
        with suppress(OSError):  # a model may have none
            model.generation_config = GenerationConfig.from_pretrained(path)
    except _LOAD_ERRORS as error:
        raise load_failure(f"the model {path!r}", path, error) from error
    assert isinstance(model, PreTrainedModel)
    return model


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return the number of rows of the embedding."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


def check_vocabulary(path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that every id of the tokenizer has a row in the embedding; more rows than ids are fine.

    Raises:
        ModelLoadError: if an id has none; names both numbers.
    """
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= embedding.num_embeddings:
        raise ModelLoadError(
            f"the model {path!r} has an embedding of {embedding.num_embeddings} rows, and its tokenizer "
            f"has ids up to {largest}: either the tokenizer belongs to another model, or tokens were added "
            "without resizing the embedding"
        )


def weights_digest(model: nn.Module) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 over a model's parameters: its reward-model
    version. If the model is divided among ranks, all of them must call this.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(whole(tensor.detach()).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def ready(model: PreTrainedModel, section: ComputeSection) -> PreTrainedModel:
    """Move a model to the section's device and set evaluation mode."""
    nn.Module.to(model, torch_device(section.device))
    nn.Module.eval(model)
    return model


def load_pretrained(
    auto: AutoClass,
    path: str,
    section: ComputeSection,
    *,
    allowed_missing: Collection[str] = (),
    **settings: object,
) -> PreTrainedModel:
    """Load a model on the CPU in the section's dtype; an adapter is added to the weights of its base.

    Args:
        auto: the class that it is loaded as.
        path: folder or hub id.
        section: gives the dtype.
        allowed_missing: weights that may be missing from the checkpoint.
        settings: changes to its configuration.

    Raises:
        ModelLoadError: if it is missing, truncated, weights are missing from the checkpoint, or it has more
            layers than its configuration says, an index names a file outside of its folder, or a weight is
            not finite.
    """
    load_config(path)
    base = adapters.base_of(path)
    if base is not None:
        # In float32: bfloat16 would lose small adapters.
        refuse_pickle(path, "adapter_model*.bin", unless="adapter_model*.safetensors*")
        exact = section.model_copy(update={"dtype": "float32"})
        model = load_pretrained(auto, base, exact, allowed_missing=allowed_missing, **settings)
        model = adapters.load_merged(model, path)
        return _cast(model, torch_dtype(section))
    refuse_pickle(path, "pytorch_model*.bin", "*.pth", "*.pt", unless="model*.safetensors*")
    check_index(path)
    loader: Any = auto
    try:
        with _quiet_transformers():
            model, report = loader.from_pretrained(
                **_source(path),
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch_dtype(section),
                output_loading_info=True,
                **settings,
            )
    except _LOAD_ERRORS as error:
        raise load_failure(f"the model {path!r}", path, error) from error
    missing = sorted(set(report["missing_keys"]) - set(allowed_missing))
    if missing:
        raise ModelLoadError(f"{path!r} lacks the weights {', '.join(missing[:5])}")
    assert isinstance(model, PreTrainedModel)
    check_unread(path, model, report["unexpected_keys"])
    check_finite(path, model)
    return _unquantized(model) if gguf_file(path) is not None else model


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Convert the weights as `from_pretrained` does: buffers, such as rotary frequencies, stay exact."""
    exact = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    for name, parameter in model.named_parameters():
        if not set(exact).intersection(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return model


def _source(path: str, *, own: str = "") -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that name a model.

    Args:
        path: folder, GGUF file or hub id.
        own: name of a file that is read instead of a GGUF file in its folder, if it exists.
    """
    file = gguf_file(path)
    if file is None:
        return {"pretrained_model_name_or_path": path}
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent.resolve())}
    return source if own and (file.parent / own).is_file() else source | {"gguf_file": file.name}


def _unquantized(model: PreTrainedModel) -> PreTrainedModel:
    """Make a model from a GGUF file an ordinary one, which `save_pretrained` saves as safetensors.

    Raises:
        ModelLoadError: if transformers left weights in the blocks of the file.
    """
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if any("Gguf" in type(module).__name__ for module in model.modules()):
        raise ModelLoadError(
            f"transformers keeps the weights of this {type(model).__name__} in GGUF blocks, which cannot be "
            "trained: uninstall the package `kernels`, or convert the file to safetensors"
        )
    return model


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Disable progress bars and the load report; `load_pretrained` raises what matters of it."""
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
    try:
        is_missing = gguf_file(path) is None and looks_local and not Path(path).expanduser().is_dir()
    except RuntimeError:  # `~name` of no user
        is_missing = True
    if not path or is_missing:
        raise ModelLoadError(f"no model folder {path!r}: give an existing folder or a hub id")
