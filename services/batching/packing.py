"""Which of the sequences that wait share a forward pass.

Between the queue and the batcher. `PaddedPacking` is for models that compute rectangles, `SharedPacking` for
those that compute real tokens alone and a shared beginning once. Both take the oldest, so nobody starves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

_Item = TypeVar("_Item")
_Item_contra = TypeVar("_Item_contra", contravariant=True)

WINDOW_BATCHES = 16
"""Sorting looks this many batches ahead; benchmarks/batching.py."""
SMALL_TOKENS = 32
"""Sequences up to this length share a batch whatever their lengths; benchmarks/batching.py."""
_SHARED_WINDOW_BATCHES = 2
"""Without padding nothing is gained by lengths that are alike; this far those who share are looked for."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A batch."""

    indices: Sequence[int]
    """Places in the window, 0 among them."""
    computed_tokens: int
    """What the model computes for it, padding included."""


class Packing(Protocol[_Item_contra]):
    """Chooses a batch out of a window of what waits."""

    @property
    def window_batches(self) -> int:
        """How many batches the window shall hold."""
        ...

    def choose(
        self, items: Sequence[_Item_contra], num_tokens: Sequence[int], *, max_batch_tokens: int
    ) -> Chosen:
        """The batch that holds the first item.

        Args:
            items: what waits, the oldest first; at least one.
            num_tokens: length of each.
            max_batch_tokens: bound of the tokens computed; a single item may exceed it.
        """
        ...


class PaddedPacking(Generic[_Item]):
    """Sequences of like length, for models that pad all to the longest."""

    window_batches = WINDOW_BATCHES

    def choose(self, items: Sequence[_Item], num_tokens: Sequence[int], *, max_batch_tokens: int) -> Chosen:
        """As `Packing.choose`."""
        batches = pack(num_tokens, max_batch_tokens=max_batch_tokens)
        chosen = next(batch for batch in batches if 0 in batch)
        return Chosen(chosen, len(chosen) * max(num_tokens[index] for index in chosen))


class SharedPacking(Generic[_Item]):
    """Those with the same beginning together, else in order of arrival; nothing is padded."""

    window_batches = _SHARED_WINDOW_BATCHES

    def __init__(self, beginning: Callable[[_Item], tuple[Hashable, int]]) -> None:
        """`beginning` gives a key of what an item may share, None if nothing, and its length in tokens."""
        self._beginning = beginning

    def choose(self, items: Sequence[_Item], num_tokens: Sequence[int], *, max_batch_tokens: int) -> Chosen:
        """As `Packing.choose`."""
        groups: dict[Hashable, list[int]] = {}
        beginnings = [self._beginning(item) for item in items]
        for index, (key, _) in enumerate(beginnings):
            groups.setdefault(index if key is None else (key,), []).append(index)
        chosen: list[int] = []
        computed = 0
        # In the order of each group's oldest, so a group's rest does not wait for its next turn.
        for group in groups.values():
            shared = beginnings[group[0]][1] if len(group) > 1 else 0
            for place, index in enumerate(group):
                cost = num_tokens[index] - (shared if place else 0)
                if chosen and computed + cost > max_batch_tokens:
                    return Chosen(chosen, computed)
                chosen.append(index)
                computed += cost
        return Chosen(chosen, computed)


def pack(num_tokens: Sequence[int], *, max_batch_tokens: int) -> list[list[int]]:
    """Cuts sequences into batches of like length: the longest first, padding counted.

    A batch ends where one more sequence would exceed the budget, or would be less than half as long as the
    longest (so that less than half of a batch is padding), unless all are small.

    Args:
        num_tokens: length of each sequence, at least 1.
        max_batch_tokens: bound of count × longest; a longer sequence is a batch of its own.

    Returns:
        Indices into `num_tokens`, each once.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(num_tokens)), key=lambda index: -num_tokens[index]):
        like = longest <= SMALL_TOKENS or 2 * num_tokens[index] >= longest
        if batches and like and (len(batches[-1]) + 1) * longest <= max_batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = num_tokens[index]
    return batches
