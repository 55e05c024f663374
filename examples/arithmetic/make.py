"""Write the data of this example: `python -m examples.arithmetic.make FOLDER`.

Prompts are the sums of two numbers up to 5. Half of the demonstrations are wrong, and a model that imitates
them is wrong as often; the reward teaches it which answers are right.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

NUM_DEMONSTRATIONS = 3_000
MISTAKES = 0.5
"""Fraction of the demonstrations that are wrong."""

SUMS = tuple(itertools.product(range(6), repeat=2))


def demonstrations(rng: random.Random, *, count: int) -> Iterable[Mapping[str, str]]:
    """Yield `{"prompt", "completion"}`."""
    for first, second in rng.choices(SUMS, k=count):
        right = first + second
        wrong = rng.choice([number for number in range(11) if number != right])
        answer = wrong if rng.random() < MISTAKES else right
        yield {"prompt": f"{first} + {second} =", "completion": str(answer)}


def make(folder: Path) -> None:
    """Write `demonstrations.jsonl`, `heldout_demonstrations.jsonl` and `prompts.jsonl`."""
    rng = random.Random(1)
    _write(folder / "demonstrations.jsonl", demonstrations(rng, count=NUM_DEMONSTRATIONS))
    _write(folder / "heldout_demonstrations.jsonl", demonstrations(rng, count=NUM_DEMONSTRATIONS // 10))
    _write(folder / "prompts.jsonl", ({"prompt": f"{first} + {second} ="} for first, second in SUMS))


def _write(path: Path, lines: Iterable[Mapping[str, str]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
