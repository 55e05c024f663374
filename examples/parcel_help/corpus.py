"""The texts of parcel help: questions of customers, parts of answers, and demonstrations of mixed quality.

The rest of this example is built on it. All draws are seeded. Words and full stops are separated by one
space, for a tokenizer that splits at white space.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

ITEMS = ("lamp", "kettle", "phone", "chair", "clock", "jacket")

PROBLEMS = ("charged", "broken", "late", "wrong")

_PHRASINGS = {
    "charged": (
        "my {item} was charged twice .",
        "why was i charged twice for the {item} ?",
        "you took my money twice for one {item} .",
        "i paid two times for my {item} .",
        "there are two charges for the {item} on my card .",
        "please help , the {item} was charged two times .",
    ),
    "broken": (
        "my {item} arrived broken .",
        "the {item} does not work .",
        "why does the {item} not work ?",
        "the {item} broke on the first day .",
        "there is a crack in my {item} .",
        "please help , my {item} is broken .",
    ),
    "late": (
        "my {item} has not arrived .",
        "where is my {item} ?",
        "the {item} is late .",
        "i still wait for my {item} .",
        "it has been two weeks and there is no {item} .",
        "please help , the {item} did not arrive .",
    ),
    "wrong": (
        "you sent the wrong {item} .",
        "this is not the {item} i asked for .",
        "why did you send another {item} ?",
        "i asked for a red {item} and this one is blue .",
        "the {item} is the wrong one .",
        "please help , this {item} is not mine .",
    ),
}

GREETINGS = ("hello .", "hello there .", "good day .")
APOLOGIES = ("we are sorry about your {item} .", "sorry for the trouble with the {item} .")
REMEDIES = {
    "charged": ("we will refund one charge .", "you will get your money back ."),
    "broken": ("we will send a new one .", "a new one is on the way ."),
    "late": ("we will find your parcel today .", "your parcel will arrive today ."),
    "wrong": ("please send it back and choose another .", "we will swap it for the right one ."),
}
CLOSINGS = ("thank you for your patience .", "have a good day .")
RUDE = ("that is your problem .", "stop asking .", "it is not our job .")
FILLERS = ("we sell many things .", "our shop is on the road .")

MAX_WORDS = 32
"""Number of words above which an answer is too long; the longest good one has 22."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a customer."""

    item: str
    """One of ITEMS."""
    problem: str
    """One of PROBLEMS; it determines the right remedy."""
    text: str
    """The prompt."""


def questions() -> tuple[Question, ...]:
    """Return all 144 questions: 6 items × 4 problems × 6 phrasings, each text once."""
    return tuple(
        Question(item=item, problem=problem, text=phrasing.format(item=item))
        for item in ITEMS
        for problem in PROBLEMS
        for phrasing in _PHRASINGS[problem]
    )


def demonstrations(count: int, *, seed: int) -> list[tuple[str, str]]:
    """Return (prompt, answer) pairs of mixed quality: the best are right and kind, the worst neither."""
    rng = random.Random(f"{seed} demonstrations")
    asked = questions()
    found = []
    for _ in range(count):
        question = rng.choice(asked)
        found.append((question.text, answer(question, skill=rng.random(), rng=rng)))
    return found


def answer(question: Question, *, skill: float, rng: random.Random) -> str:
    """Return one answer of mixed quality; `skill` in [0, 1] shifts every probability."""
    parts: list[str] = []
    if rng.random() < 0.3 + 0.4 * skill:
        parts.append(rng.choice(GREETINGS))
    if rng.random() < 0.3 + 0.4 * skill:
        item = question.item if rng.random() < 0.5 + 0.5 * skill else rng.choice(ITEMS)
        parts.append(rng.choice(APOLOGIES).format(item=item))
    if rng.random() < 0.4 - 0.3 * skill:
        parts.append(rng.choice(FILLERS))
    if rng.random() < 0.7 + 0.2 * skill:
        problem = question.problem if rng.random() < 0.25 + 0.5 * skill else rng.choice(PROBLEMS)
        parts.append(rng.choice(REMEDIES[problem]))
    if rng.random() < 0.45 - 0.4 * skill:
        parts.append(rng.choice(RUDE))
    if rng.random() < 0.3 + 0.4 * skill:
        parts.append(rng.choice(CLOSINGS))
    if not parts:
        parts.append(rng.choice(FILLERS))
    if rng.random() < 0.25 - 0.2 * skill:
        parts.append(rng.choice(parts))
    if rng.random() < 0.15 - 0.1 * skill:
        rng.shuffle(parts)
    return " ".join(parts)
