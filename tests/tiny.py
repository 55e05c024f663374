"""Checkpoints small enough to create in a test: a word tokenizer, a Llama, a reward model.

The tokenizer knows the words w0 … w55 and reads `<unk>` for any other; pad, end and unknown are distinct ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fairlead.config.base import ComputeSection
from fairlead.nn.reward_model import load_reward_model

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY = (*SPECIAL, *(f"w{number}" for number in range(56)))
VOCABULARY_SIZE = len(VOCABULARY)


def tiny_tokenizer(*, pad_is_eos: bool = False, size: int = VOCABULARY_SIZE) -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits at white space; `<s>` is its only special token before a text."""
    words = {word: index for index, word in enumerate(VOCABULARY[:size])}
    definition = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    definition.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    definition.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=definition,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>" if pad_is_eos else "<pad>",
    )


def tiny_causal_lm(folder: Path, *, seed: int = 0, pad_is_eos: bool = False, **config: Any) -> Path:
    """Save a two-layer Llama with its tokenizer; `config` overrides fields of LlamaConfig."""
    size = min(VOCABULARY_SIZE, config.get("vocab_size", VOCABULARY_SIZE))
    tokenizer = tiny_tokenizer(pad_is_eos=pad_is_eos, size=size)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        # Wide enough that greedy answers to different prompts and their log-probs differ.
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(settings | config)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_reward_model(folder: Path, *, seed: int = 0, bias: float = 0.25, **config: Any) -> Path:
    """Save a reward model on a tiny Llama, with a random head and a bias."""
    tiny_causal_lm(folder, seed=seed, **config)
    return add_head(folder, tiny_tokenizer(), seed=seed, bias=bias)


def add_head(folder: Path, tokenizer: PreTrainedTokenizerFast, *, seed: int, bias: float) -> Path:
    """Turn the language model in a folder into a reward model, with a random head that separates answers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        reward = load_reward_model(str(folder), ComputeSection(device="cpu"), fresh_head=True)
    with torch.no_grad():
        reward.head.weight.mul_(3.0)
        reward.head.bias.fill_(bias)
    reward.save(folder, tokenizer)
    return folder
