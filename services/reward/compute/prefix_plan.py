"""How a batch is computed when nothing is padded and every shared beginning runs once: a tree, laid out flat.

Knows tokens and rows, but no model. The batch is a row of segments behind one another; a segment attends to
itself and to what leads to it: a cached beginning, then earlier segments.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from services.reward.compute.prefix_cache import MIN_TOKENS, CachedPrefix, Ids, PrefixCache
from services.reward.encoded import prompt_length

MAX_TAIL = 512
"""A segment that attends to others is cut at this length: its mask has a row for each of its tokens."""

Rows = tuple[int, int]
"""From, to."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that follow one another in a sequence, or in several that begin alike."""

    start: int
    """First row."""
    end: int
    """Row behind the last."""
    cached: CachedPrefix | None
    """Beginning of what it follows."""
    before: tuple[Rows, ...]
    """Rows of the segments behind `cached` that it follows."""

    @property
    def num_before(self) -> int:
        """Tokens that it follows."""
        rows = sum(end - start for start, end in self.before)
        return rows + (self.cached.length if self.cached else 0)


@dataclass(frozen=True, slots=True)
class Keep:
    """A beginning to be put into the cache."""

    key: bytes
    length: int
    cached: CachedPrefix | None
    rows: tuple[Rows, ...]
    """What follows `cached`."""
    is_prompt: bool
    """Rather than a stem of several prompts."""


@dataclass(slots=True)
class Plan:
    """A batch."""

    num_sequences: int
    ids: Ids
    """All rows."""
    positions: Ids
    """Of each row in its sequence."""
    segments: list[Segment]
    last_rows: list[int]
    """Row of each sequence's last token."""
    keeps: list[Keep]


@dataclass(slots=True)
class _Branch:
    """Sequences, in order of their ids, that agree up to a depth."""

    indices: list[int]
    depth: int
    cached: CachedPrefix | None
    before: tuple[Rows, ...]


@dataclass(slots=True)
class Planner:
    """Builds one plan."""

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
        """The whole."""
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
        """The sequences by the cached beginning that each goes on from."""
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
        """Computes what runs of neighbours share, and gives what remains of them."""
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
        # A stem is what prompts have in common, or what answers have where nobody knows their prompt's end.
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
        """Lays out ids [start, end) of a sequence; gives the rows that what follows has before it."""
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
        """Ids that two sequences have in common; the last id of each is its own."""
        end = min(len(self.arrays[left]), len(self.arrays[right])) - 1
        same = self.arrays[left][depth:end] == self.arrays[right][depth:end]
        return end if same.all() else depth + int(same.argmin())


def _first(rows: tuple[Rows, ...], count: int) -> tuple[Rows, ...]:
    """The first `count` of some rows."""
    found: list[Rows] = []
    for start, end in rows:
        if count <= 0:
            break
        found.append((start, min(end, start + count)))
        count -= end - start
    return tuple(found)
