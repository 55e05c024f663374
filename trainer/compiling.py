"""torch.compile for training: every block of a model is compiled by itself, where that is set."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException
from transformers import PreTrainedModel

from fairlead.config.training import TrainingSection
from fairlead.errors import ConfigError
from trainer import memory

_SHOWN = 300
"""Characters of a compiler's error that are repeated."""
_KINDS = 64
"""How often the code of blocks may be compiled; above torch would, with a warning only, stop to compile."""


def prepare_blocks(model: PreTrainedModel, section: TrainingSection, *, field: str) -> None:
    """Compile the blocks of a model and let the backward pass recompute them, as the section says.

    Before the model is divided among ranks.

    Args:
        model: its blocks are changed in place.
        section: the stage's.
        field: the name of the section, for messages.

    Raises:
        ConfigError: transformers does not know the blocks of the architecture.
    """
    if section.compile:
        compile_blocks(model, field=field)
    if section.gradient_checkpointing:
        memory.recompute_blocks(model, field=field)


def compile_blocks(model: PreTrainedModel, *, field: str) -> None:
    """Compile every block with torch.compile, for batches of any shape; equal blocks share what is compiled.

    A block is compiled in its first forward pass. Only what it computes itself: gathering the weights of a
    divided model and recomputation stay outside.

    Raises:
        ConfigError: transformers does not know the blocks of the architecture; and in the first forward pass,
            if a block cannot be compiled.
    """
    blocks = memory.blocks_of(model)
    if not blocks:
        raise ConfigError(
            f"{field}.compile",
            got=f"true, for {type(model).__name__}, whose blocks transformers does not name",
            allowed="false for this architecture",
        )
    # Shapes of one row, masks without padding and passes without gradient are compiled apart, for each model.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _KINDS)
    for block in blocks:
        block.forward = _CompiledForward(block.forward, field)


class _CompiledForward:
    """The forward pass of a block; that of a copied block belongs to the copy."""

    def __init__(self, forward: Callable[..., Any], field: str) -> None:
        self._forward = forward
        self._compiled = torch.compile(forward, dynamic=True)
        self._field = field

    def __call__(self, *args: object, **kwargs: object) -> object:
        try:
            return self._compiled(*args, **kwargs)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split("\n\n")[0].split())[:_SHOWN]
            raise ConfigError(
                f"{self._field}.compile",
                got=f"true, but the model cannot be compiled ({type(error).__name__}: {reason})",
                allowed="false, or true where a compiler is installed (g++ on a CPU, Triton on a GPU)",
            ) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> _CompiledForward:
        return _CompiledForward(copy.deepcopy(self._forward, memo), self._field)
