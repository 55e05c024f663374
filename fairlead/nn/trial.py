"""Finds out by trying whether a model can be run in a way that is not its own, before anybody relies on it.

The code of an architecture is not ours: what it raises when it is run otherwise than it was written for is a
reason to leave it alone, not a failure.
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
"""What the models of transformers raise for arguments, caches and attention that they do not know."""


@torch.inference_mode()
def obstacle(trial: Callable[[], str]) -> str:
    """Why a model cannot be run so; empty if it can.

    Args:
        trial: runs it both ways, and says in what they differ; empty if they agree.
    """
    try:
        return trial()
    except _UNFIT as error:
        return f"{type(error).__name__}: {error}"


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways of computing the same may lie apart, relative to the larger of the value and 1."""
    return 1e-3 if dtype == torch.float32 else 0.1
