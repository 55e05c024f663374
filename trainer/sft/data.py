"""The order in which demonstrations are learnt from, and each format by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fairlead.data.demonstrations import FORMATS, Example
from trainer.seeds import permutation


def by_format(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """The examples of each format that occurs, by the format's name."""
    found: dict[str, list[Example]] = {}
    for example in examples:
        found.setdefault(FORMATS[type(example)], []).append(example)
    return found


def batches(count: int, *, size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Indices of each optimizer step of an epoch, in one permutation per epoch."""
    order = permutation(count, seed, "sft", epoch)
    for start in range(0, count, size):
        yield order[start : start + size]
