"""The pages that models are pretrained on: made-up web pages about parcels, of mixed quality.

They are built from the parts of parcel help. A shop's page answers each question on it, well or badly; a list
has only questions; some questions are followed by text about something else; other pages have nothing to do
with parcels. All draws are seeded. Knows neither models nor gold.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from examples.parcel_help.corpus import Question, answer

SEPARATOR = "###"
"""A word between two entries of a page, as a line break would be."""

_SHARES = {"shop": 0.5, "list": 0.2, "aside": 0.1, "story": 0.2}
"""Shares of the kinds of pages."""
_ENTRIES = (1, 1, 1, 2, 2, 3)
"""Numbers of entries of a shop's page, all equally probable."""

_WHO = ("the old man", "my sister", "a small dog", "the baker", "our teacher", "a tall girl", "the driver")
_DID = ("saw", "painted", "carried", "lost", "drew", "washed", "followed", "sold")
_WHAT = ("a green boat", "the map", "two apples", "a grey horse", "the bread", "some flowers", "a long song")
_WHERE = ("by the river", "in the garden", "near the station", "under the bridge", "at the market")
_WHEN = ("in the morning", "last winter", "after lunch", "every week", "at night")


def pages(count: int, *, seed: int, asked: Sequence[Question]) -> list[str]:
    """Return pages of words that are separated by one space.

    Args:
        count: number of pages.
        seed: of all draws.
        asked: questions that may occur; those that the models are evaluated on are not among them.
    """
    rng = random.Random(f"{seed} pages")
    kinds = rng.choices(list(_SHARES), weights=list(_SHARES.values()), k=count)
    return [_KINDS[kind](rng, asked) for kind in kinds]


def continuation(first: Question, *, rng: random.Random, asked: Sequence[Question]) -> str:
    """Return what follows a question at the beginning of a page, up to the next entry.

    So would continue a model that has learnt the pages perfectly, however large it is.

    Args:
        first: the question, which need not occur in pages.
        rng: of all draws.
        asked: questions that may follow.
    """
    shares = {kind: share for kind, share in _SHARES.items() if kind in _BEGINNING}
    [kind] = rng.choices(list(shares), weights=list(shares.values()))
    page = _BEGINNING[kind](rng, asked, first)
    return page.removeprefix(first.text).split(SEPARATOR)[0].strip()


def entry(question: Question, reply: str) -> str:
    """Return a question with its answer, as on a shop's page."""
    return f"{question.text} {reply}"


def _shop(rng: random.Random, asked: Sequence[Question], first: Question | None = None) -> str:
    # One shop answers all of its customers equally well, as good as in the demonstrations.
    skill = rng.random()
    found = _chosen(rng, asked, rng.choice(_ENTRIES), first)
    return f" {SEPARATOR} ".join(entry(one, answer(one, skill=skill, rng=rng)) for one in found)


def _list(rng: random.Random, asked: Sequence[Question], first: Question | None = None) -> str:
    return " ".join(one.text for one in _chosen(rng, asked, rng.randint(2, 4), first))


def _aside(rng: random.Random, asked: Sequence[Question], first: Question | None = None) -> str:
    return f"{(first or rng.choice(asked)).text} {_sentences(rng, rng.randint(1, 3))}"


def _story(rng: random.Random, asked: Sequence[Question], first: Question | None = None) -> str:
    del asked, first
    return _sentences(rng, rng.randint(2, 5))


def _chosen(
    rng: random.Random, asked: Sequence[Question], count: int, first: Question | None
) -> list[Question]:
    found = rng.choices(asked, k=count)
    return found if first is None else [first, *found[1:]]


def _sentences(rng: random.Random, count: int) -> str:
    found = []
    for _ in range(count):
        parts = [rng.choice(_WHO), rng.choice(_DID), rng.choice(_WHAT)]
        if rng.random() < 0.6:
            parts.append(rng.choice(_WHERE))
        if rng.random() < 0.4:
            parts.append(rng.choice(_WHEN))
        found.append(f"{' '.join(parts)} .")
    return " ".join(found)


_BEGINNING = {"shop": _shop, "list": _list, "aside": _aside}
"""Kinds of pages that begin with a question."""
_KINDS = {**_BEGINNING, "story": _story}
