"""Seeds of random draws: a hash of the run's seed, the purpose, and numbers such as task id or epoch.

A draw never depends on how often something was retried or sent, so a resumed run repeats itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def derive(run_seed: int, purpose: str, *numbers: int) -> int:
    """Return a seed below 2⁶² from the run's seed, a purpose and numbers such as task id, update or epoch."""
    text = ":".join([str(run_seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def permutation(length: int, run_seed: int, purpose: str, *numbers: int) -> list[int]:
    """Return a permutation of range(length) drawn with the derived seed."""
    generator = torch.Generator().manual_seed(derive(run_seed, purpose, *numbers))
    order: Tensor = torch.randperm(length, generator=generator)
    return [int(index) for index in order]


def batches(order: Sequence[int], *, size: int) -> Iterator[list[int]]:
    """Yield the indices of each optimizer step of an epoch, in the order given."""
    for start in range(0, len(order), size):
        yield list(order[start : start + size])
