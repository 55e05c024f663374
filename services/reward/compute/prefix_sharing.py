"""Beginnings that several sequences share: planned within a batch, and cached between batches.

`Planner` lays a batch out without padding and runs each shared beginning once. `PrefixCache` keeps the keys
and values of prompts for later responses to them; each model version has its own cache. Knows tokens and
rows, but no model.

Shapes: H key heads, L prefix tokens, D head size.
"""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fairlead import metrics
from services.reward.item_reader import prompt_length

Ids = npt.NDArray[np.int64]
KeysValues = Mapping[tuple[int, int], tuple[Tensor, Tensor]]
"""Keys and values [H, L, D] by (member of the ensemble, layer)."""

MIN_TOKENS = 16
"""Shorter beginnings are not shared: another segment costs more than they do; benchmarks/scoring.py."""
MAX_TAIL = 512
"""A segment that follows other tokens is cut at this length: its mask has a row for each of its tokens."""
_MAX_STEMS = 8
"""Different lengths of cached beginnings that are not whole prompts; each is looked up for every sequence."""

Rows = tuple[int, int]
"""First row, and the row after the last."""


@dataclass(frozen=True, slots=True, eq=False)
class CachedPrefix:
    """A beginning, with the keys and values that attention needs."""

    key: bytes
    """Its ids, as bytes."""
    length: int
    """Number of tokens."""
    keys_values: KeysValues
    """Keys and values of every member and layer."""

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(k.nbytes + v.nbytes for k, v in self.keys_values.values())


class PrefixCache:
    """Bounded in bytes; the least recently used beginning is removed first. Safe for several threads."""

    def __init__(self, max_bytes: int, *, reward_metrics: metrics.RewardMetrics | None = None) -> None:
        """
        Args:
            max_bytes: memory of all keys and values; 0 disables the cache.
            reward_metrics: metrics of the cache.
        """
        self._max_bytes = max_bytes
        self._metrics = reward_metrics
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
        """Return the longest cached beginning that is shorter than `ids`; count the lookup.

        Args:
            ids: a whole sequence.
            prompt_length: tokens of its prompt, 0 if unknown.
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
        """Return whether a beginning is to be cached after it was computed."""
        if not self._max_bytes or length < MIN_TOKENS:
            return False
        with self._lock:
            known = is_prompt or length in self._stems or len(self._stems) < _MAX_STEMS
            return known and key not in self._entries

    def put(self, entry: CachedPrefix, *, is_prompt: bool) -> None:
        """Cache a beginning; remove the least recently used ones if there is no space."""
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
        """Remove every beginning."""
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
            # The removed beginning may be a prompt of the same length as a stem. Then stems of that length
            # are no longer looked up, and are cached again when they are computed again.
            self._stems.pop(entry.length, None)

    def _count(self, result: str, *, tokens: int = 0) -> None:
        if self._metrics is not None:
            self._metrics.prefix_lookups.labels(result).inc()
            self._metrics.prefix_tokens.inc(tokens)

    def _count_bytes(self, change: int) -> None:
        # The metric is for all caches together: while a model is replaced there are two.
        if self._metrics is not None:
            self._metrics.prefix_bytes.inc(change)


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one sequence, or of several with the same beginning.

    A segment attends to itself and to the tokens before it: a cached beginning, then earlier segments.
    """

    start: int
    """First row."""
    end: int
    """Row after the last."""
    cached: CachedPrefix | None
    """Cached beginning of the sequence."""
    before: tuple[Rows, ...]
    """Rows of the segments between `cached` and this one."""

    @property
    def num_before(self) -> int:
        """Number of tokens before it."""
        rows = sum(end - start for start, end in self.before)
        return rows + (self.cached.length if self.cached else 0)


@dataclass(frozen=True, slots=True)
class Keep:
    """A beginning to be cached."""

    key: bytes
    length: int
    cached: CachedPrefix | None
    rows: tuple[Rows, ...]
    """Its rows after `cached`."""
    is_prompt: bool
    """Whether it is a whole prompt, rather than the stem of several prompts."""


@dataclass(slots=True)
class Plan:
    """A batch, laid out as one row of segments."""

    num_sequences: int
    ids: Ids
    """Token id of each row."""
    positions: Ids
    """Position of each row in its sequence."""
    segments: list[Segment]
    last_rows: list[int]
    """Row of each sequence's last token."""
    keeps: list[Keep]


@dataclass(slots=True)
class _Branch:
    """Sequences, sorted by their ids, that are equal up to a depth."""

    indices: list[int]
    depth: int
    cached: CachedPrefix | None
    before: tuple[Rows, ...]


@dataclass(slots=True)
class Planner:
    """Builds the plan of one batch: a tree of shared beginnings, laid out flat."""

    sequences: Sequence[tuple[int, ...]]
    cache: PrefixCache | None
    share: bool
    arrays: list[Ids] = field(init=False)
    pieces: list[Ids] = field(default_factory=list)
    positions: list[Ids] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    last_rows: list[int] = field(init=False)
    keeps: dict[bytes, Keep] = field(default_factory=dict)
    rows: int = 0

    def __post_init__(self) -> None:
        self.arrays = [np.array(sequence, dtype=np.int64) for sequence in self.sequences]
        self.last_rows = [0] * len(self.arrays)

    def plan(self) -> Plan:
        """Return the plan."""
        stack = self._trunks()
        while stack:
            branch = stack.pop()
            if len(branch.indices) == 1:
                self._leaf(branch)
            else:
                stack += self._fork(branch)
        return Plan(
            num_sequences=len(self.arrays),
            ids=np.concatenate(self.pieces),
            positions=np.concatenate(self.positions),
            segments=self.segments,
            last_rows=self.last_rows,
            keeps=list(self.keeps.values()),
        )

    def _trunks(self) -> list[_Branch]:
        """Group the sequences by their cached beginning."""
        if not self.share:
            return [_Branch([index], 0, None, ()) for index in range(len(self.arrays))]
        trunks: dict[CachedPrefix | None, list[int]] = {}
        for index in sorted(range(len(self.arrays)), key=self.sequences.__getitem__):
            cached = None
            if self.cache is not None:
                cached = self.cache.find(self.arrays[index], prompt_length(self.sequences[index]))
            trunks.setdefault(cached, []).append(index)
        return [
            _Branch(indices, cached.length if cached else 0, cached, ()) for cached, indices in trunks.items()
        ]

    def _fork(self, branch: _Branch) -> list[_Branch]:
        """Lay out what runs of neighbours share; return the remaining branches."""
        found: list[_Branch] = []
        run, shared = [branch.indices[0]], 0
        for left, right in itertools.pairwise(branch.indices):
            common = self._common(left, right, branch.depth)
            if common - branch.depth >= MIN_TOKENS:
                shared = min(shared, common) if len(run) > 1 else common
                run.append(right)
            else:
                found.append(self._run(branch, run, shared))
                run = [right]
        found.append(self._run(branch, run, shared))
        return found

    def _run(self, branch: _Branch, run: list[int], shared: int) -> _Branch:
        if len(run) == 1:
            return _Branch(run, branch.depth, branch.cached, branch.before)
        before = self._add(run[0], branch.depth, shared, branch)
        prompts = [prompt_length(self.sequences[index]) for index in run]
        # A stem is the common beginning of several prompts, or of sequences whose prompt length is unknown.
        if all(length == 0 or shared <= length for length in prompts):
            self._keep(run[0], shared, branch.cached, before, is_prompt=shared in prompts)
        return _Branch(run, shared, branch.cached, before)

    def _leaf(self, branch: _Branch) -> None:
        (index,) = branch.indices
        before = self._add(index, branch.depth, len(self.arrays[index]), branch)
        self.last_rows[index] = self.rows - 1
        length = prompt_length(self.sequences[index])
        if self.share and (branch.cached is None or branch.cached.length < length):
            self._keep(index, length, branch.cached, before, is_prompt=True)

    def _add(self, index: int, start: int, end: int, branch: _Branch) -> tuple[Rows, ...]:
        """Lay out ids [start, end) of a sequence; return the rows before the tokens that follow."""
        before = branch.before
        step = MAX_TAIL if start else end
        for first in range(start, end, step):
            last = min(first + step, end)
            rows = (self.rows, self.rows + last - first)
            self.segments.append(Segment(*rows, branch.cached, before))
            before = (*before, rows)
            self.rows = rows[1]
        self.pieces.append(self.arrays[index][start:end])
        self.positions.append(np.arange(start, end))
        return before

    def _keep(
        self,
        index: int,
        length: int,
        cached: CachedPrefix | None,
        rows: tuple[Rows, ...],
        *,
        is_prompt: bool,
    ) -> None:
        if self.cache is None:
            return
        key = self.arrays[index][:length].tobytes()
        if key in self.keeps or not self.cache.wants(key, length, is_prompt=is_prompt):
            return
        wanted = length - (cached.length if cached else 0)
        self.keeps[key] = Keep(key, length, cached, _first(rows, wanted), is_prompt)

    def _common(self, left: int, right: int, depth: int) -> int:
        """Return the length of the common beginning of two sequences, without the last id of each."""
        end = min(len(self.arrays[left]), len(self.arrays[right])) - 1
        same = self.arrays[left][depth:end] == self.arrays[right][depth:end]
        return end if same.all() else depth + int(same.argmin())


def _first(rows: tuple[Rows, ...], count: int) -> tuple[Rows, ...]:
    """Return the first `count` rows."""
    found: list[Rows] = []
    for start, end in rows:
        if count <= 0:
            break
        found.append((start, min(end, start + count)))
        count -= end - start
    return tuple(found)
