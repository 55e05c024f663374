"""Write the three data files of this example: `python -m examples.own_data.make [FOLDER]`.

At the desk of a library people ask to borrow things, and the answers are warm, curt or of no help. The
demonstrations contain all three equally often; the rankings show which ones are preferred. Your own files
need only have the same format.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

THINGS = ("atlas", "cookbook", "globe", "map", "newspaper", "novel", "puzzle", "radio", "record", "telescope")
DAYS = ("monday", "tuesday", "friday", "sunday")
QUESTIONS = (
    "can i borrow the {thing} ?",
    "i need the {thing} until {day} .",
    "may i keep the {thing} until {day} ?",
    "is the {thing} here on {day} ?",
)
ANSWERS = {
    "warm": (
        "of course , enjoy the {thing} !",
        "yes , and you may keep the {thing} until {day} . enjoy it !",
    ),
    "curt": ("yes .", "take it ."),
    "no help": ("ask someone else .", "i do not know .", "i do not know , ask someone else ."),
}
"""Answers by kind, from the best to the worst."""

NUM_DEMONSTRATIONS = 800
NUM_RANKINGS = 300
NUM_PAIRS = 100
MISTAKES = 0.15
"""Probability that a labeler swaps two adjacent answers."""


def prompts() -> list[str]:
    """Return every question about every thing, once."""
    found = [
        question.format(thing=thing, day=day) for thing in THINGS for question in QUESTIONS for day in DAYS
    ]
    return list(dict.fromkeys(found))


def demonstrations(rng: random.Random) -> Iterable[Mapping[str, Any]]:
    """Yield `{"prompt", "completion"}`: answers of every kind."""
    for prompt in rng.choices(prompts(), k=NUM_DEMONSTRATIONS):
        yield {"prompt": prompt, "completion": _answer(prompt, rng.choice(list(ANSWERS)), rng)}


def preferences(rng: random.Random) -> Iterable[Mapping[str, Any]]:
    """Yield rankings of three answers (1 is best), then pairs: one file may contain both."""
    for prompt in rng.choices(prompts(), k=NUM_RANKINGS):
        responses = [
            {"text": _answer(prompt, kind, rng), "rank": rank}
            for rank, kind in enumerate(_order(list(ANSWERS), rng), start=1)
        ]
        rng.shuffle(responses)
        yield {"prompt": prompt, "responses": responses}
    for prompt in rng.choices(prompts(), k=NUM_PAIRS):
        kinds = list(ANSWERS)
        kinds.remove(rng.choice(kinds))
        better, worse = _order(kinds, rng)
        yield {
            "prompt": prompt,
            "chosen": _answer(prompt, better, rng),
            "rejected": _answer(prompt, worse, rng),
        }


def write(folder: Path, *, seed: int = 0) -> None:
    """Write demonstrations.jsonl, preferences.jsonl and prompts.jsonl."""
    rng = random.Random(seed)
    _write(folder / "demonstrations.jsonl", demonstrations(rng))
    _write(folder / "preferences.jsonl", preferences(rng))
    _write(folder / "prompts.jsonl", ({"prompt": prompt} for prompt in prompts()))


def _order(kinds: list[str], rng: random.Random) -> list[str]:
    """Return the kinds from the best to the worst, as a labeler orders them."""
    if rng.random() < MISTAKES:
        place = rng.randrange(len(kinds) - 1)
        kinds[place], kinds[place + 1] = kinds[place + 1], kinds[place]
    return kinds


def _answer(prompt: str, kind: str, rng: random.Random) -> str:
    words = prompt.split()
    thing = next(word for word in words if word in THINGS)
    day = next((word for word in words if word in DAYS), rng.choice(DAYS))
    return rng.choice(ANSWERS[kind]).format(thing=thing, day=day)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    target.mkdir(parents=True, exist_ok=True)
    write(target)
