"""Keys and values of prompts that were seen, bounded in bytes: the next answers to them need no second look.

One for each model version: with the scorer goes its cache. Safe for several threads.

Shapes: H key heads, L prefix tokens, D head size.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fairlead import metrics

Ids = npt.NDArray[np.int64]
KeysValues = Mapping[tuple[int, int], tuple[Tensor, Tensor]]
"""Keys and values [H, L, D] by (member of the ensemble, layer)."""

MIN_TOKENS = 16
"""Beginnings shorter than this are computed again: a cut costs more than they do; benchmarks/scoring.py."""
_MAX_STEMS = 8
"""Lengths of beginnings that are no whole prompt; each is tried for every sequence."""


@dataclass(frozen=True, slots=True, eq=False)
class CachedPrefix:
    """A beginning and what attention needs of it."""

    key: bytes
    """Its ids."""
    length: int
    """Tokens."""
    keys_values: KeysValues
    """Of every member and layer."""

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values."""
        return sum(k.nbytes + v.nbytes for k, v in self.keys_values.values())


class PrefixCache:
    """Least recently used goes first."""

    def __init__(self, max_bytes: int, *, counts: metrics.RewardMetrics | None = None) -> None:
        """
        Args:
            max_bytes: of keys and values together; 0 keeps nothing.
            counts: where to count.
        """
        self._max_bytes = max_bytes
        self._counts = counts
        self._entries: collections.OrderedDict[bytes, CachedPrefix] = collections.OrderedDict()
        self._stems: collections.Counter[int] = collections.Counter()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Memory in use."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, ids: Ids, prompt_length: int) -> CachedPrefix | None:
        """The longest beginning that is known and shorter than `ids`; counted if there is one to look for.

        Args:
            ids: a whole sequence.
            prompt_length: of its prompt, 0 if that is not known.
        """
        if not self._max_bytes:
            return None
        with self._lock:
            lengths = [length for length in self._stems if length < len(ids)]
            if MIN_TOKENS <= prompt_length < len(ids):
                lengths.append(prompt_length)
            for length in sorted(set(lengths), reverse=True):
                key = ids[:length].tobytes()
                entry = self._entries.get(key)
                if entry is not None:
                    self._entries.move_to_end(key)
                    self._count("hit", tokens=length)
                    return entry
            if lengths:
                self._count("miss")
        return None

    def wants(self, key: bytes, length: int, *, is_prompt: bool) -> bool:
        """Whether a beginning shall be kept when it has been computed."""
        if not self._max_bytes or length < MIN_TOKENS:
            return False
        with self._lock:
            known = is_prompt or length in self._stems or len(self._stems) < _MAX_STEMS
            return known and key not in self._entries

    def put(self, entry: CachedPrefix, *, is_prompt: bool) -> None:
        """Keeps a beginning, at the cost of those not used for the longest time."""
        size = entry.num_bytes
        with self._lock:
            if entry.key in self._entries or size > self._max_bytes:
                return
            before = self._bytes
            self._entries[entry.key] = entry
            self._bytes += size
            if not is_prompt:
                self._stems[entry.length] += 1
            while self._bytes > self._max_bytes:
                self._forget(*self._entries.popitem(last=False))
            self._count_bytes(self._bytes - before)

    def clear(self) -> None:
        """Frees all of it; the cache goes on empty."""
        with self._lock:
            self._entries.clear()
            self._stems.clear()
            self._count_bytes(-self._bytes)
            self._bytes = 0

    def _forget(self, key: bytes, entry: CachedPrefix) -> None:
        self._bytes -= entry.num_bytes
        if self._stems[entry.length] > 1:
            self._stems[entry.length] -= 1
        else:
            # A prompt of that length may go in its place: then the stem's length is tried no more, and
            # it is made again when it is met again.
            self._stems.pop(entry.length, None)

    def _count(self, result: str, *, tokens: int = 0) -> None:
        if self._counts is not None:
            self._counts.prefix_lookups.labels(result).inc()
            self._counts.prefix_tokens.inc(tokens)

    def _count_bytes(self, change: int) -> None:
        # Of all caches together: while a model is replaced there are two.
        if self._counts is not None:
            self._counts.prefix_bytes.inc(change)
