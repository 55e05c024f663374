"""Read the sizes and the shapes of the tensors of a GGUF file, in the terms of config.json and safetensors.

Needs neither torch nor the weights; the names of tensors are those of llama.cpp.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from fairlead.errors import ModelLoadError

_NUMBERS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
}
_OUTPUT = "output.weight"


def read_gguf(file: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return the sizes by their names in config.json, and the shape of every tensor by name.

    Raises:
        ModelLoadError: if the file is not GGUF, or is damaged.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
        config = {
            name: value
            for key, name in _NUMBERS.items()
            if (field := reader.fields.get(f"{architecture}.{key}")) is not None
            and isinstance(value := field.contents(), int)
        }
        shapes = {
            "lm_head.weight" if tensor.name == _OUTPUT else tensor.name: tuple(
                int(length) for length in reversed(tensor.shape)
            )
            for tensor in reader.tensors
        }
        config["vocab_size"] = shapes["token_embd.weight"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise ModelLoadError(f"{str(file)!r} cannot be read as GGUF: {error}") from error
    return config, shapes
