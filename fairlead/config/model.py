"""`[model]`: the language model that supervised fine-tuning starts from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.config.section import Section


class ScratchModel(Section):
    """A small Llama with random weights and a tokenizer made from the run's own texts."""

    hidden_size: int = Field(default=64, ge=8, le=8_192)
    """Width."""
    num_layers: int = Field(default=2, ge=1, le=128)
    """Blocks."""
    num_heads: int = Field(default=4, ge=1, le=128)
    """Attention heads; must divide the width."""
    max_position_embeddings: int = Field(default=256, ge=8, le=131_072)
    """Longest sequence in tokens."""
    tokenizer: Literal["words", "bpe"] = "bpe"
    """`words` splits at white space; `bpe` is byte-level byte-pair encoding."""
    vocabulary_size: int = Field(default=4_096, ge=16, le=262_144)
    """Entries of the tokenizer at most."""


class ModelSection(Section):
    """Where the base model comes from: a path or hub id, or from scratch."""

    path: str = ""
    """Local folder or hub id of a causal language model. Empty: from scratch."""
    scratch: ScratchModel = ScratchModel()
    """Sizes of a model from scratch; used when `path` is empty."""
