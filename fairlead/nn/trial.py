"""Test whether an architecture supports a way of running it, before relying on it.

An error from the architecture's code, which is not ours, means that the way is not supported, not that
something failed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_UNFIT = (
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that models of transformers raise for arguments, caches and attention that they do not support."""


@torch.inference_mode()
def obstacle(trial: Callable[[], str]) -> str:
    """Return why a model cannot be run in the tried way; empty if it can.

    Args:
        trial: runs the model both ways and returns how they differ; empty if they agree.
    """
    try:
        return trial()
    except _UNFIT as error:
        return f"{type(error).__name__}: {error}"


def tolerance(dtype: torch.dtype) -> float:
    """Return how far two ways of computing a value may differ, relative to the larger of the value and 1."""
    return 1e-3 if dtype == torch.float32 else 0.1
