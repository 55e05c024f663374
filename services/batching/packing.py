"""Choose which waiting sequences share a forward pass.

Used by the batch queue. `PaddedPacking` is for models that pad a batch to its longest sequence,
`SharedPacking` for models that do not pad and compute a shared prefix once. Both always include the oldest
sequence, so no request starves. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

_Item = TypeVar("_Item")
_Item_contra = TypeVar("_Item_contra", contravariant=True)

WINDOW_BATCHES = 16
"""Size of the window that is sorted by length, in full batches; tuned by benchmarks/batching.py."""
SMALL_TOKENS = 32
"""Sequences up to this length share a batch regardless of length; tuned by benchmarks/batching.py."""
_SHARED_WINDOW_BATCHES = 2
"""Window for shared prefixes, in full batches. Without padding, similar lengths have no advantage."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The sequences chosen for one batch."""

    indices: Sequence[int]
    """Indices into the window; 0 is always included."""
    computed_tokens: int
    """Tokens that the model computes for the batch, padding included."""


class Packing(Protocol[_Item_contra]):
    """Chooses a batch from a window of waiting sequences."""

    @property
    def window_batches(self) -> int:
        """Size of the window, in full batches."""
        ...

    def choose(
        self, items: Sequence[_Item_contra], num_tokens: Sequence[int], *, max_batch_tokens: int
    ) -> Chosen:
        """Choose a batch that includes the first item.

        Args:
            items: waiting items, oldest first; at least one.
            num_tokens: length of each item.
            max_batch_tokens: limit on computed tokens; a single item may exceed it.
        """
        ...


class PaddedPacking(Generic[_Item]):
    """Batches sequences of similar length, for models that pad to the longest."""

    window_batches = WINDOW_BATCHES

    def choose(self, items: Sequence[_Item], num_tokens: Sequence[int], *, max_batch_tokens: int) -> Chosen:
        """Implement `Packing.choose`."""
        batches = pack(num_tokens, max_batch_tokens=max_batch_tokens)
        chosen = next(batch for batch in batches if 0 in batch)
        return Chosen(chosen, len(chosen) * max(num_tokens[index] for index in chosen))


class SharedPacking(Generic[_Item]):
    """Batches sequences with the same prefix together, otherwise in order of arrival; nothing is padded."""

    window_batches = _SHARED_WINDOW_BATCHES

    def __init__(self, beginning: Callable[[_Item], tuple[Hashable, int]]) -> None:
        """`beginning` returns a key for an item's prefix (None: no prefix) and its length in tokens."""
        self._beginning = beginning

    def choose(self, items: Sequence[_Item], num_tokens: Sequence[int], *, max_batch_tokens: int) -> Chosen:
        """Implement `Packing.choose`."""
        groups: dict[Hashable, list[int]] = {}
        beginnings = [self._beginning(item) for item in items]
        for index, (key, _) in enumerate(beginnings):
            groups.setdefault(index if key is None else (key,), []).append(index)
        chosen: list[int] = []
        computed = 0
        # Groups are ordered by their oldest item, and a group is taken whole before the next one.
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
    """Split sequences into batches of similar length, longest first, within a budget that counts padding.

    A batch ends when one more sequence would exceed the budget, or would be less than half as long as the
    longest (so that less than half of a batch is padding). Sequences up to `SMALL_TOKENS` ignore the second
    rule.

    Args:
        num_tokens: length of each sequence, at least 1.
        max_batch_tokens: limit on count × longest; a longer sequence gets a batch to itself.

    Returns:
        Batches of indices into `num_tokens`; each index occurs once.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(num_tokens)), key=lambda index: -num_tokens[index]):
        similar = longest <= SMALL_TOKENS or 2 * num_tokens[index] >= longest
        if batches and similar and (len(batches[-1]) + 1) * longest <= max_batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = num_tokens[index]
    return batches
