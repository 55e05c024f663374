"""Folders of well-known models: their configuration and the headers of their weights. The weights are a hole
in the file, which takes no disk space and reads as zeros.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

_LLAMA = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": False,
}
_QWEN = {"vocab_size": 151_936, "tie_word_embeddings": True, "max_position_embeddings": 32_768}

SHAPES: Mapping[str, Mapping[str, object]] = {
    "Llama-3.2-1B": _LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": _LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "head_dim": 128,
    },
    "Llama-3.1-70B": _LLAMA
    | {
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "head_dim": 128,
    },
    "Qwen2.5-0.5B": _QWEN
    | {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    "Qwen3-0.6B": _QWEN
    | {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
"""Sizes of models, as in their config.json."""


def write(folder: Path, name: str, *, is_reward: bool = False) -> Path:
    """Write the folder of a model.

    Args:
        folder: is created.
        name: a key of `SHAPES`.
        is_reward: whether it has a scalar head in place of the output layer.
    """
    config = dict(SHAPES[name])
    family = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[str(config["model_type"])]
    config["architectures"] = [f"{family}For{'SequenceClassification' if is_reward else 'CausalLM'}"]
    if is_reward:
        config["num_labels"] = 1
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    end, header = 0, {}
    for key, shape in _tensors(config, is_reward=is_reward).items():
        size = 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + end)
    return folder


def _tensors(config: Mapping[str, object], *, is_reward: bool) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by name."""

    def number(key: str) -> int:
        value = config[key]
        assert isinstance(value, int)
        return value

    hidden, inner, rows = (number(key) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    width = number("head_dim")
    queries, keys = number("num_attention_heads") * width, number("num_key_value_heads") * width
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, hidden),
        "model.norm.weight": (hidden,),
    }
    if is_reward:
        shapes["score.weight"] = (1, hidden)
    elif not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (rows, hidden)
    projections = {"q": queries, "k": keys, "v": keys}
    for layer in range(number("num_hidden_layers")):
        block = f"model.layers.{layer}"
        for part, out in projections.items():
            shapes[f"{block}.self_attn.{part}_proj.weight"] = (out, hidden)
            if config["model_type"] == "qwen2":
                shapes[f"{block}.self_attn.{part}_proj.bias"] = (out,)
        shapes |= {
            f"{block}.self_attn.o_proj.weight": (hidden, queries),
            f"{block}.mlp.gate_proj.weight": (inner, hidden),
            f"{block}.mlp.up_proj.weight": (inner, hidden),
            f"{block}.mlp.down_proj.weight": (hidden, inner),
            f"{block}.input_layernorm.weight": (hidden,),
            f"{block}.post_attention_layernorm.weight": (hidden,),
        }
    return shapes
