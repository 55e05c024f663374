"""Models with random weights, as folders that the services load; speed does not depend on the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

PAD, BOS, EOS = 0, 1, 2

SMOLLM2: Mapping[str, int] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
"""The sizes of SmolLM2-135M, whose output layer is tied."""
_QUICK: Mapping[str, int] = {
    "vocab_size": 512,
    "hidden_size": 72,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
}


def smollm2(*, quick: bool, **settings: object) -> LlamaConfig:
    """Return the shape of SmolLM2-135M, changed by settings; with `quick`, a small one with as many heads."""
    sizes = {**SMOLLM2, **_QUICK} if quick else SMOLLM2
    return LlamaConfig(**{**sizes, **settings, "tie_word_embeddings": True})  # type: ignore[arg-type]


def config(*, width: int, layers: int, vocabulary: int, positions: int) -> LlamaConfig:
    """Return a Llama with heads of 64 (16 below a width of 256) and a gated MLP of 8/3 of the width."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=width // (64 if width >= 256 else 16),
        max_position_embeddings=positions,
        num_labels=1,  # type: ignore[call-arg]  # of the base class
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def causal_lm(shape: LlamaConfig, device: torch.device) -> PreTrainedModel:
    """Create a language model that never generates EOS."""
    torch.manual_seed(0)
    model: PreTrainedModel = LlamaForCausalLM(shape)
    model.generation_config.eos_token_id = None
    nn.Module.to(model.eval(), device)  # type: ignore[no-untyped-call]
    return model


def save(folder: Path, shape: LlamaConfig, *, reward: bool) -> Path:
    """Save a language or reward model with a tokenizer of its vocabulary size."""
    torch.manual_seed(0)
    model = (LlamaForSequenceClassification if reward else LlamaForCausalLM)(shape)
    model.save_pretrained(folder)
    words = {"<pad>": PAD, "<s>": BOS, "</s>": EOS} | {f"w{i}": i for i in range(3, shape.vocab_size)}
    definition = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    definition.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=definition, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="</s>"
    ).save_pretrained(folder)
    return folder
