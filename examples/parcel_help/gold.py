"""The gold reward of parcel help, computed exactly by parsing an answer into the sentences of the corpus.

The simulated labelers rank by it, with noise, and the report measures by it. Reward model and PPO never see
it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from examples.parcel_help.corpus import (
    APOLOGIES,
    CLOSINGS,
    FILLERS,
    GREETINGS,
    ITEMS,
    MAX_WORDS,
    REMEDIES,
    RUDE,
    Question,
    questions,
)

RIGHT_REMEDY = 1.6
RIGHT_APOLOGY = 0.9
CLOSING = 0.4
GREETING = 0.2
RUDENESS = -1.2
WRONG_REMEDY = -0.8
REPETITION = -0.6
UNGRAMMATICAL = -0.8
TOO_LONG_PER_WORD = -0.1
NO_END = -1.0

BEST = RIGHT_REMEDY + RIGHT_APOLOGY + CLOSING + GREETING
"""Reward of an answer with every good part once and no bad one."""


@dataclass(frozen=True, slots=True)
class Part:
    """A parsed sentence of an answer."""

    kind: str
    """greeting, apology, remedy, closing, rude or filler; ungrammatical for any other text."""
    about: str = ""
    """The item of an apology, the problem of a remedy."""


def _sentences() -> dict[str, Part]:
    known: dict[str, Part] = {}
    for kind, texts in (("greeting", GREETINGS), ("closing", CLOSINGS), ("rude", RUDE), ("filler", FILLERS)):
        known.update({text: Part(kind) for text in texts})
    known.update({text.format(item=item): Part("apology", item) for text in APOLOGIES for item in ITEMS})
    known.update({text: Part("remedy", problem) for problem, texts in REMEDIES.items() for text in texts})
    return known


_KNOWN = _sentences()
_ASKED = {question.text: question for question in questions()}


def parse(answer: str) -> list[Part]:
    """Return the parts of an answer, split after full stops; a rest without a full stop is ungrammatical."""
    parts: list[Part] = []
    words: list[str] = []
    for word in answer.split():
        words.append(word)
        if word == ".":
            parts.append(_KNOWN.get(" ".join(words), Part("ungrammatical")))
            words = []
    if words:
        parts.append(Part("ungrammatical"))
    return parts


def reward(prompt: str, answer: str, *, ended: bool) -> float:
    """Return how good an answer is.

    Only the first part of each kind counts. Each further part of the kind is a repetition, even with other
    words: a second remedy does not correct a wrong first one. Every rude and every ungrammatical part costs.

    Args:
        prompt: the text of one of the corpus's questions.
        answer: its words, separated by white space.
        ended: False if the answer was cut off before its end.

    Raises:
        KeyError: the prompt is not a question of the corpus.
    """
    question = _ASKED[prompt]
    parts = parse(answer)
    kinds = Counter(part.kind for part in parts)
    rude, ungrammatical = kinds.pop("rude", 0), kinds.pop("ungrammatical", 0)
    firsts = {part.kind: part for part in reversed(parts)}
    total = sum(_worth(part, question) for part in firsts.values())
    total += RUDENESS * rude + UNGRAMMATICAL * ungrammatical
    total += REPETITION * sum(count - 1 for count in kinds.values())
    total += TOO_LONG_PER_WORD * max(0, len(answer.split()) - MAX_WORDS)
    # Rounded, so that answers with the same parts in another order have exactly the same reward.
    return round(total + (0.0 if ended else NO_END), 9)


def _worth(part: Part, question: Question) -> float:
    match part.kind:
        case "greeting":
            return GREETING
        case "closing":
            return CLOSING
        case "apology":
            return RIGHT_APOLOGY if part.about == question.item else 0.0
        case "remedy":
            return RIGHT_REMEDY if part.about == question.problem else WRONG_REMEDY
        case _:
            return 0.0
