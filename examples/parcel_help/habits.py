"""Simulated labelers with habits, for tests of what collects and compares judgments.

Each is a function of its name, its seed and what it is shown: asked again, it says the same. So a program
that acts for one may be killed and started again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from examples.parcel_help import gold, labelers
from fairlead.errors import InvalidInput
from fairlead.judgments import Judgment

Habit = Literal["honest", "random", "backwards", "longest", "first"]
"""Ranks by worth; by nothing; by worth, the worst first; by length; by the order shown."""
Task = tuple[str, Sequence[str]]
"""A prompt and its answers."""
_LARGEST_LOG_NOISE = 12.0


def gold_worth(prompt: str, text: str) -> float:
    """Return the gold reward of an answer that has ended."""
    return gold.reward(prompt, text, ended=True)


@dataclass(frozen=True, slots=True)
class HabitualLabeler:
    """A labeler that ranks any number of answers, with ties."""

    name: str
    """Its name."""
    seed: int = 0
    """Of its noise, together with its name."""
    habit: Habit = "honest"
    """What it ranks by."""
    noise: float = labelers.NOISE
    """Differences of worth are divided by it. `noise_for` returns that of an agreement rate."""
    tie_below: float = 0.0
    """An answer that is worse than the best of its place by less than this is tied with it; in units of
    noise."""
    noise_of: Literal["labeler", "task"] = "labeler"
    """Whether the noise belongs to this labeler, or to the task, about which all with this seed then say the
    same: the outcome does not depend on who gets it."""
    worth: Callable[[str, str], float] = gold_worth
    """Returns the worth of an answer to a prompt. That of gold knows only the questions of the corpus."""

    def ranks(self, prompt: str, texts: Sequence[str]) -> list[int]:
        """Return the rank of each text, from 1, without gaps; equal ranks are ties.

        The noise belongs to prompt and text, so the order in which the texts are shown changes nothing,
        unless the habit is to prefer the first.
        """
        whose = self.name if self.noise_of == "labeler" else "\0".join(sorted(texts))
        noisy = [
            worth / self.noise + self._noise(whose, prompt, text)
            for worth, text in zip(self._worths(prompt, texts), texts, strict=True)
        ]
        ranks = [0] * len(texts)
        rank, best = 0, math.inf
        for index in sorted(range(len(texts)), key=noisy.__getitem__, reverse=True):
            if best - noisy[index] >= self.tie_below:
                rank, best = rank + 1, noisy[index]
            ranks[index] = rank
        return ranks

    def _worths(self, prompt: str, texts: Sequence[str]) -> list[float]:
        if self.habit == "random":
            return [0.0] * len(texts)
        if self.habit == "longest":
            return [float(len(text)) for text in texts]
        if self.habit == "first":
            return [-2.0 * self.noise * place for place in range(len(texts))]
        sign = -1 if self.habit == "backwards" else 1
        return [sign * self.worth(prompt, text) for text in texts]

    def _noise(self, whose: str, prompt: str, text: str) -> float:
        return labelers.gumbel(random.Random(f"{self.seed}\0{whose}\0{prompt}\0{text}"))


def noise_for(agreement: float, worths: Sequence[Sequence[float]], *, tie_below: float = 0.0) -> float:
    """Return the noise with which two honest labelers agree on a share of the pairs that neither ties.

    With Gumbel noise the difference of two worths is Δ ÷ noise + logistic noise, so the probabilities that a
    labeler prefers one or the other are p = σ(Δ/noise − t) and q = σ(−Δ/noise − t), where it ties differences
    below t; two labelers agree on Σ (p² + q²) of Σ (p + q)² pairs. It falls with the noise.

    Args:
        agreement: between 0.5 and 1.
        worths: those of the answers to each of some tasks.
        tie_below: as in `HabitualLabeler`.

    Raises:
        InvalidInput: if no noise gives that agreement.
    """
    gaps = [a - b for own in worths for place, a in enumerate(own) for b in own[place + 1 :]]

    def rate(log_noise: float) -> float:
        both = [
            (
                _sigmoid(gap / math.exp(log_noise) - tie_below),
                _sigmoid(-gap / math.exp(log_noise) - tie_below),
            )
            for gap in gaps
        ]
        return sum(p * p + q * q for p, q in both) / sum((p + q) ** 2 for p, q in both)

    low, high = -_LARGEST_LOG_NOISE, _LARGEST_LOG_NOISE
    if not gaps or not rate(high) < agreement < rate(low):
        allowed = (
            f"between {rate(high):.2f} and {rate(low):.2f}" if gaps else "tasks with two answers or more"
        )
        raise InvalidInput("agreement", got=agreement, allowed=allowed)
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if rate(middle) > agreement else (low, middle)
    return math.exp(low)


def overlapping(
    known: Sequence[HabitualLabeler], tasks: Sequence[Task], *, overlap: int, seed: int
) -> list[Judgment]:
    """Let several labelers rank each task; everybody sees an order of their own.

    Of as many tasks as there are labelers, each labeler has `overlap`, together with others each time.
    """
    rng = random.Random(f"{seed} overlapping")
    found = []
    steps: list[int] = []
    for number, (prompt, texts) in enumerate(tasks):
        if number % len(known) == 0:
            steps = [0, *rng.sample(range(1, len(known)), overlap - 1)]
        for labeler in (known[(number + step) % len(known)] for step in steps):
            order = rng.sample(range(len(texts)), len(texts))
            ranks = labeler.ranks(prompt, [texts[place] for place in order])
            shown = tuple(map(str, order))
            found.append(
                Judgment(
                    task=f"{number}",
                    labeler=labeler.name,
                    ranks=dict(zip(shown, ranks, strict=True)),
                    shown=shown,
                    lengths={str(place): len(text) for place, text in enumerate(texts)},
                )
            )
    return found


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
