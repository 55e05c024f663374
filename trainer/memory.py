"""Memory of training: gradient checkpointing, backward passes, and the error where it does not suffice."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from fairlead.config.training import TrainingSection
from fairlead.errors import ConfigError, OutOfMemory
from fairlead.nn import allocator

FREE_BYTES = 64 << 20
"""Freed memory that a stage keeps on a CPU for its next pass: all of it with a small model, and little of it
compared with a large one."""
_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory")
"""Parts of torch's messages about a lack of memory, on GPUs and CPUs."""


def blocks_of(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the blocks of a model that transformers names; none for architectures without that."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def recompute_blocks(model: PreTrainedModel, *, field: str) -> None:
    """Make every block keep only its input for the backward pass, which recomputes the rest.

    The switch of transformers works only in training mode, where dropout is on; this one works in any mode.

    Raises:
        ConfigError: if transformers does not know the blocks of the architecture; names `field`.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ConfigError(
            f"{field}.gradient_checkpointing",
            got=f"true, for {type(model).__name__}, which transformers cannot checkpoint",
            allowed="false for this architecture",
        )
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def backward(loss: Tensor) -> None:
    """Add the gradients of a loss; on a CPU, return the gaps of the heap if they have added up."""
    loss.backward()  # type: ignore[no-untyped-call]
    if loss.device.type == "cpu":
        allocator.give_back(above=FREE_BYTES)


@contextmanager
def explained_memory_errors(stage: str, section: TrainingSection) -> Iterator[None]:
    """Turn a lack of memory into an error that names the settings to change.

    Raises:
        OutOfMemory: instead of torch's and Python's own errors.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_memory_error(error):
            raise
        why = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise OutOfMemory(f"{stage} ran out of memory: {_advice(stage, section)} ({why})") from error


def is_memory_error(error: BaseException) -> bool:
    """Return whether an error reports a lack of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def _advice(stage: str, section: TrainingSection) -> str:
    found = [f"lower {stage}.max_micro_batch_tokens (now {section.max_micro_batch_tokens})"]
    if not section.gradient_checkpointing:
        found.append(f"set {stage}.gradient_checkpointing = true")
    if section.dtype == "float32":
        found.append(f"set {stage}.dtype = 'bfloat16'")
    lora = getattr(section, "lora", None)
    if lora is not None and not lora.rank:
        found.append(f"train an adapter with {stage}.lora.rank = 16")
    then = "continues from the last checkpoint" if stage == "ppo" else "starts the stage again"
    return ", or ".join(found) + f"; the same command then {then}"
