"""Seeds of every draw: a hash of the run's seed, the purpose and what the draw is for.

A draw never depends on how often something was tried or sent, so a resumed run repeats itself.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive(run_seed: int, purpose: str, *numbers: int) -> int:
    """A seed below 2⁶² from the run's seed, a purpose and numbers such as task id or update and epoch."""
    text = ":".join([str(run_seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def permutation(length: int, run_seed: int, purpose: str, *numbers: int) -> list[int]:
    """A permutation of range(length) drawn with the derived seed."""
    generator = torch.Generator().manual_seed(derive(run_seed, purpose, *numbers))
    order: Tensor = torch.randperm(length, generator=generator)
    return [int(index) for index in order]
