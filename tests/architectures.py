"""A tiny checkpoint of each architecture that Fairlead is tested with, made and saved by the tests.

Each has random weights and a byte-level tokenizer with its family's special tokens and chat template.
The families differ: Qwen has no BOS and more rows than tokens, Llama's template writes a BOS that its
tokenizer would write again, GPT-2 pads with its EOS, GPT-NeoX has parallel residuals and rotary parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from tests.tiny import add_head

CONTEXT = 128
"""Longest sequence of each, in tokens."""

_TEXTS = ("the lamp is broken .", "where is my parcel ?", "we are sorry for that , and send a new one .")
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n\n{% endif %}"
)
_PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
_LAYERS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}


@dataclass(frozen=True)
class Architecture:
    """Definition of a family's checkpoint."""

    config: type[PreTrainedConfig]
    settings: Mapping[str, Any]
    special: Mapping[str, str | None]
    """Of the tokenizer; `bos_token`, `eos_token`, `pad_token`."""
    template: str
    extra_rows: int = 0
    """Rows of the embedding beyond the tokenizer's ids."""
    adds_bos: bool = False
    """Whether the tokenizer puts BOS before a text."""


_QWEN = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
ARCHITECTURES: Mapping[str, Architecture] = {
    "qwen2": Architecture(
        Qwen2Config, _LAYERS | {"num_key_value_heads": 2, "tie_word_embeddings": True}, _QWEN, _CHATML, 11
    ),
    "qwen3": Architecture(
        Qwen3Config, _LAYERS | {"num_key_value_heads": 2, "head_dim": 16}, _QWEN, _CHATML, 3
    ),
    "llama": Architecture(
        LlamaConfig,
        _LAYERS
        | {
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        {"bos_token": "<|begin|>", "eos_token": "<|eot|>", "pad_token": None},
        _LLAMA,
        adds_bos=True,
    ),
    "gpt2": Architecture(
        GPT2Config,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
        dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>"),
        _PLAIN,
    ),
    "gpt_neox": Architecture(
        GPTNeoXConfig,
        _LAYERS | {"rotary_pct": 0.25, "use_parallel_residual": True},
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|padding|>"},
        _PLAIN,
    ),
}


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with the family's special tokens after the others, and its chat
    template.
    """
    family = ARCHITECTURES[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _TEXTS, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    )
    names = [*filter(None, family.special.values()), "<|im_start|>", "<|start|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in dict.fromkeys(names)])
    if family.adds_bos:
        bos = family.special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **family.special)
    found.chat_template = family.template
    return found


def causal_lm(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a language model of an architecture with random parameters, and its tokenizer."""
    family, tokenizer = ARCHITECTURES[name], tokenizer_of(name)
    config = family.config(
        vocab_size=len(tokenizer) + family.extra_rows,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **family.settings,
    )
    model = _drawn(lambda: AutoModelForCausalLM.from_config(config), seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reward_model(name: str, folder: Path, *, seed: int = 0, bias: float = 0.0) -> Path:
    """Save a reward model of an architecture in Fairlead's format, with a head that separates answers."""
    causal_lm(name, folder, seed=seed)
    return add_head(folder, tokenizer_of(name), seed=seed, bias=bias)


def _drawn(make: Callable[[], PreTrainedModel], seed: int) -> PreTrainedModel:
    """Draw parameters widely, so that prompts get different answers and biases and norms have an effect."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                centre = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
                parameter.normal_(centre, 0.2)
    return model
