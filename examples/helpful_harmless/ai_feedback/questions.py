"""The pairs of people by the question that began their conversation, and splits that no question crosses.

Shapes: P pairs, L learnt, J of judges, H held out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.helpful_harmless import make
from examples.helpful_harmless.data import PAIRS, data_file
from examples.helpful_harmless.data import pairs as people
from fairlead.data.chat import Chat
from fairlead.data.comparisons import Preference
from fairlead.errors import ConfigError
from fairlead.types import Message

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Asked:
    """All pairs, and the question of each."""

    pairs: tuple[Preference, ...]
    """Prompts are the ends of conversations, as in training."""
    question_P: Indices
    """Number of the question. Conversations that begin or end alike have the same."""


@dataclass(frozen=True, slots=True)
class Split:
    """Places of pairs in three parts without a common question."""

    learnt_L: Indices
    """Pairs that a reward model learns from, in the order in which they are labelled."""
    judges_J: Indices
    """Pairs whose labels by people train judges."""
    heldout_H: Indices
    """Pairs that measure."""


def load(data: Path) -> Asked:
    """Return the pairs of hh_rlhf in a folder of data.

    Raises:
        ConfigError: if the folder does not have them.
        DataError: if their file is invalid.
    """
    pairs, names = [], []
    for row in people(data_file(data, PAIRS)):
        prompt = Chat(tuple(Message(**message) for message in make.shortened(row["prompt"])))
        pairs.append(Preference(prompt, row["chosen"][0]["content"], row["rejected"][0]["content"]))
        names.append((make.normalized(row["prompt"][0]["content"]), str(prompt)))
    return Asked(tuple(pairs), joined(names))


def among(asked: Asked, pairs: Sequence[Preference]) -> Asked:
    """Return some of the pairs, in the order given, with their questions.

    Raises:
        ConfigError: if one of them is not among the pairs.
    """
    places = {_key(pair): place for place, pair in enumerate(asked.pairs)}
    if missing := sum(_key(pair) not in places for pair in pairs):
        raise ConfigError(
            "--heldout-only",
            got=f"{missing} of the run's {len(pairs)} pairs that are not in the folder of data",
            allowed="the folder that `python -m examples.helpful_harmless.make` made the run's files from",
        )
    question_P = asked.question_P[[places[_key(pair)] for pair in pairs]]
    return Asked(tuple(pairs), np.unique(question_P, return_inverse=True)[1])


def _key(pair: Preference) -> tuple[str, str, str]:
    return str(pair.prompt), pair.chosen, pair.rejected


def joined(names: Iterable[Sequence[str]]) -> Indices:
    """Return a number for each item, the same for items that share a name, directly or by others."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.setdefault(name, name) != name:
            name = parents[name]
        return name

    firsts = []
    for own in names:
        firsts.append(own[0])
        for other in own[1:]:
            parents[root(other)] = root(own[0])
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(root(name), len(numbers)) for name in firsts], np.int64)


def split(question_P: Indices, *, learnt: int, judges: int, rng: np.random.Generator) -> Split:
    """Divide pairs at random; a pair whose question is in an earlier part is left out of a later one.

    Args:
        question_P: question of each pair.
        learnt: pairs to learn from.
        judges: pairs for judges; all others are held out.
        rng: draws the order of questions.

    Raises:
        ConfigError: if nothing is left to be held out.
    """
    place_Q = rng.permutation(int(question_P.max()) + 1)
    order_P = np.argsort(place_Q[question_P], kind="stable")
    learnt_L, rest = _cut(order_P, learnt, question_P)
    judges_J, heldout_H = _cut(rest, judges, question_P)
    if not len(heldout_H):
        raise ConfigError(
            "--learnt, --judges", got=f"{learnt} + {judges} of {len(order_P)} pairs", allowed="fewer"
        )
    return Split(learnt_L, judges_J, heldout_H)


def _cut(order: Indices, size: int, question_P: Indices) -> tuple[Indices, Indices]:
    """Return the first items, and the others without those that share a question with them."""
    first, rest = order[:size], order[size:]
    return first, rest[~np.isin(question_P[rest], question_P[first])]
