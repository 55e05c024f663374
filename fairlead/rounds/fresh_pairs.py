"""Pairs of answers to compare while PPO runs: each new answer with one of the first update to its prompt.

Such a pair shows what training changed: if the reward was earned, labelers prefer the later answer. Pairs of
answers of one update say less, since these become similar.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.data.tail import Tail

FIRST_UPDATE = 1


@dataclass(frozen=True, slots=True)
class FreshPair:
    """Two answers to one prompt."""

    later: Mapping[str, Any]
    """The line of the samples with the new answer: `update`, `task`, `prompt`, `text`, `ended`."""
    earlier: Mapping[str, Any]
    """The line with an answer of the first update."""
    rng: random.Random
    """For further draws about this pair, such as a simulated labeler's."""


class FreshPairs:
    """Reads the answers of a run as the trainer writes them."""

    def __init__(self, samples: Path, *, seed: int, after_update: int = FIRST_UPDATE) -> None:
        """
        Args:
            samples: the file that the trainer appends its samples to.
            seed: seeds the choice of the earlier answers.
            after_update: the last update whose answers were compared before.
        """
        self._tail = Tail(samples)
        self._seed = seed
        self._first = defaultdict[str, list[Mapping[str, Any]]](list)
        self._update = after_update

    def new(self) -> list[FreshPair]:
        """Return the pairs of the answers written since the last call.

        An answer whose prompt the first update lacks, or that equals all of its answers, has no pair.
        """
        rows = []
        for number, line in self._tail.appended():
            if number == 1:  # The file was started again, as after an interruption.
                self._first.clear()
            rows.append(json.loads(line))
        for row in rows:
            if row["update"] == FIRST_UPDATE:
                self._first[row["prompt"]].append(row)
        found = [pair for row in rows if row["update"] > self._update for pair in self._pair(row)]
        self._update = max([self._update, *(int(row["update"]) for row in rows)])
        return found

    def _pair(self, row: Mapping[str, Any]) -> Iterator[FreshPair]:
        others = [other for other in self._first[row["prompt"]] if other["text"] != row["text"]]
        if others:
            rng = random.Random(f"{self._seed} fresh labels {row['update']} {row['task']}")
            yield FreshPair(row, rng.choice(others), rng)
