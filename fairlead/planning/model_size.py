"""The size of a model, from its config.json and the headers of its safetensors files.

Needs neither torch nor the weights: a header lists exactly the tensors that are loaded, tied tensors once.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.config.data import ScratchModel
from fairlead.config.training import PpoSection
from fairlead.errors import ModelLoadError, install_command, pickle_refused
from fairlead.nn.gguf import gguf_file
from fairlead.planning.gguf_size import read_gguf

_UNEMBEDDINGS = ("lm_head", "embed_out", "output_layer")
_HEADS = ("score", "classifier", "v_head")
_INDEX = "model.safetensors.index.json"
_HEADER_BYTES = 100 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """The sizes of a model that determine its memory."""

    name: str
    """Path or hub id, or a description."""
    parameters: int
    """Parameters of the causal language model, tied ones once."""
    unembedding: int
    """Parameters of an output layer that is not tied; a reward model or critic does not have it."""
    tensors: int
    """Number of parameter tensors; 0 if unknown."""
    matrices: tuple[tuple[int, int], ...]
    """Shapes of the linear layers inside the blocks, which can have adapters."""
    hidden: int
    """Width."""
    intermediate: int
    """Width inside the feed-forward layers."""
    layers: int
    """Number of blocks."""
    heads: int
    """Attention heads of a block."""
    head_width: int
    """Width of the keys of one head."""
    key_value_width: int
    """Total width of the keys of one token in one layer; the values have the same."""
    vocabulary: int
    """Rows of the embedding."""
    max_positions: int
    """Maximum length of a sequence, in tokens."""
    exact: bool = True
    """False if the number of parameters is an estimate."""

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values of a block."""
        return self.key_value_width // self.head_width

    @property
    def body(self) -> int:
        """Parameters without those of an untied output layer."""
        return self.parameters - self.unembedding


def critic_size(section: PpoSection, sizes: Mapping[str, ModelSize]) -> ModelSize:
    """Return the size of the model that PPO's critic starts from.

    With `critic_init = "auto"`, models of the same sizes count as those of one tokenizer and architecture.

    Args:
        section: the recipe.
        sizes: of `policy` and `reward`.
    """
    policy, reward = sizes["policy"], sizes["reward"]
    ours, theirs = ((size.vocabulary, size.hidden, size.layers) for size in (policy, reward))
    if section.critic_init == "auto":
        return reward if ours == theirs and not section.lora.rank else policy
    return reward if section.critic_init == "reward_model" else policy


def scratch_size(scratch: ScratchModel) -> ModelSize:
    """Return the size of a model from scratch with the largest possible vocabulary; the texts decide the real
    one.
    """
    hidden = scratch.hidden_size
    layers = scratch.num_layers
    intermediate = -(-hidden * 8 // 24) * 8
    block = [(hidden, hidden)] * 4 + [(intermediate, hidden)] * 2 + [(hidden, intermediate)]
    per_block = sum(rows * columns for rows, columns in block) + 2 * hidden
    return ModelSize(
        name="from scratch",
        parameters=scratch.vocabulary_size * hidden + layers * per_block + hidden,
        unembedding=0,
        tensors=2 + layers * (len(block) + 2),
        matrices=tuple(block * layers),
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=scratch.num_heads,
        head_width=hidden // scratch.num_heads,
        key_value_width=hidden,
        vocabulary=scratch.vocabulary_size,
        max_positions=scratch.max_position_embeddings,
        exact=False,
    )


def model_size(path: str) -> ModelSize:
    """Return the size of a model in a folder, a GGUF file or the cache of the Hugging Face Hub.

    Raises:
        ModelLoadError: if the model does not exist, or its files do not define its size.
    """
    file = gguf_file(path)
    if file is not None:
        return _from_tensors(*read_gguf(file), name=path)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        folder = _cached(path)
    if (folder / "adapter_config.json").is_file():
        if not any(folder.glob("adapter_model*.safetensors*")):
            for file in sorted(folder.glob("adapter_model*.bin")):
                raise pickle_refused(path, file.name)
        return _base_of(folder, path)
    config = _config(folder, path)
    tensors = _tensors(folder, path)
    if tensors is None:
        for file in sorted(folder.glob("pytorch_model*.bin")):
            raise pickle_refused(path, file.name)
        raise ModelLoadError(f"{path!r} has no *.safetensors files, so it is not a complete model")
    return _from_tensors(config, tensors, name=path)


def _base_of(folder: Path, name: str) -> ModelSize:
    """Return the size of an adapter's base: when an adapter is loaded, it is merged into the base's
    weights.
    """
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return model_size(str(base["base_model_name_or_path"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(
            f"the adapter {name!r}: its adapter_config.json does not name a base model"
        ) from error


def _from_tensors(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, name: str
) -> ModelSize:
    # Old checkpoints contain masks and rotary tables, which are not parameters.
    real = {
        key: shape
        for key, shape in shapes.items()
        if not key.endswith((".inv_freq", ".masked_bias")) and len(shape) < 4 and not _is_head(key)
    }
    unembedding = {key: math.prod(shape) for key, shape in real.items() if _part(key, _UNEMBEDDINGS)}
    if unembedding and config.get("tie_word_embeddings"):
        real = {key: shape for key, shape in real.items() if key not in unembedding}
        unembedding = {}
    matrices = tuple(
        (shape[0], shape[1]) for key, shape in real.items() if len(shape) == 2 and _is_in_a_block(key)
    )
    return _from_config(
        config,
        name=name,
        parameters=sum(map(math.prod, real.values())),
        unembedding=sum(unembedding.values()),
        tensors=len(real),
        matrices=matrices,
    )


def _from_config(
    config: Mapping[str, Any],
    *,
    name: str,
    parameters: int,
    unembedding: int,
    tensors: int,
    matrices: tuple[tuple[int, int], ...],
) -> ModelSize:
    config = config.get("text_config") or config

    def number(*names: str, default: int | None = None) -> int:
        for each in names:
            value = config.get(each)
            if isinstance(value, int) and value > 0:
                return value
        if default is None:
            raise ModelLoadError(f"{name!r}: its config.json has none of {', '.join(names)}")
        return default

    hidden = number("hidden_size", "n_embd", "d_model")
    heads = number("num_attention_heads", "n_head", "num_heads")
    head_width = number("head_dim", default=hidden // heads)
    return ModelSize(
        name=name,
        parameters=parameters,
        unembedding=unembedding,
        tensors=tensors,
        matrices=matrices,
        hidden=hidden,
        intermediate=number("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden),
        layers=number("num_hidden_layers", "n_layer", "num_layers"),
        heads=heads,
        head_width=head_width,
        key_value_width=number("num_key_value_heads", default=heads) * head_width,
        vocabulary=number("vocab_size"),
        max_positions=number("max_position_embeddings", "n_positions", "n_ctx", default=2_048),
    )


def _config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"{name!r} has no config.json, so it is not the folder of a model") from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{name!r}: its config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{name!r}: its config.json is not a JSON object")
    return config


def _tensors(folder: Path, name: str) -> dict[str, tuple[int, ...]] | None:
    """Return the shape of every tensor by name; None if there are no safetensors files."""
    try:
        if (folder / _INDEX).is_file():
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
            files = sorted({folder / file for file in index.values()})
        else:
            files = sorted(folder.glob("*.safetensors"))
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            shapes |= _header(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelLoadError(f"{name!r}: its safetensors cannot be read: {error}") from error
    return shapes or None


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    with file.open("rb") as content:
        (size,) = struct.unpack("<Q", content.read(8))
        if size > _HEADER_BYTES:
            raise ValueError(f"{file.name} is not a safetensors file")
        header = json.loads(content.read(size))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def _cached(name: str) -> Path:
    """Return the folder of a model in the cache of the Hugging Face Hub; nothing is downloaded."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise ModelLoadError(f"no model folder {name!r}: give an existing folder or a hub id")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ModelLoadError(
            f"{name!r} is not a folder, and the hub's cache cannot be read without huggingface_hub: "
            f"{install_command('torch')}"
        ) from None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise ModelLoadError(
            f"{name!r} is neither a folder nor in the hub's cache; run `hf download {name}` to download it"
        ) from None


def _part(key: str, names: tuple[str, ...]) -> bool:
    return any(part in names for part in key.split("."))


def _is_head(key: str) -> bool:
    return key.partition(".")[0] in _HEADS


def _is_in_a_block(key: str) -> bool:
    return any(part.isdigit() for part in key.split("."))
