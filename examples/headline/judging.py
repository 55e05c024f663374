"""Who compares two models' answers: gold, simulated labelers, and a reward model of another seed.

Each sees a question and two texts, not where they come from. Verdicts, ties and intervals are those of
`fairlead compare`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from examples.headline.answers import Answers
from examples.parcel_help.habits import HabitualLabeler, gold_worth
from fairlead.cli.judges import RewardJudge
from fairlead.clients.win_rate import WinRate, win_rate
from fairlead.config import RunConfig
from fairlead.data.chat import Prompt
from fairlead.local.serving import score, serving
from fairlead.rounds.files import read_rows, write_rows

GOLD, LABELERS, OTHER = "gold", "labelers", "reward model of another seed"
NUM_LABELERS = 5
TIE_BELOW = 0.5
"""A labeler calls two answers equally good if they seem to differ by less, in units of its noise."""
TIE_MARGIN = 0.2
"""Scores of a reward model that differ by less, in log-odds, are a tie."""

Scores = Mapping[tuple[str, str], float]
"""Score by question and text."""


class Judge(Protocol):
    """Compares two answers to a question."""

    async def verdict(self, question: str, first: str, second: str, *, number: int) -> float:
        """Return 1 if the first is better, 0 if the second is, 0.5 for a tie.

        Args:
            question: the question.
            first: an answer.
            second: another answer.
            number: of the comparison.
        """
        ...


class ByScore:
    """The answer with the higher score is better; the judge of `fairlead compare --reward`."""

    def __init__(self, name: str, scores: Scores, *, tie_margin: float = 0.0) -> None:
        """
        Args:
            name: who scores.
            scores: of every answer that is compared.
            tie_margin: scores that differ by less are a tie.
        """
        self._judge = RewardJudge(_Known(name, scores), tie_margin)

    async def verdict(self, question: str, first: str, second: str, *, number: int) -> float:
        """See `Judge`."""
        del number
        return float(str((await self._judge.compare(question, first, second))["verdict"]))


class ByLabelers:
    """Simulated labelers, each of whom judges some of the comparisons; none has labelled for training."""

    def __init__(self, *, seed: int) -> None:
        self._labelers = [
            HabitualLabeler(f"judge-{place}", seed=seed, tie_below=TIE_BELOW) for place in range(NUM_LABELERS)
        ]

    async def verdict(self, question: str, first: str, second: str, *, number: int) -> float:
        """See `Judge`."""
        own, other = self._labelers[number % NUM_LABELERS].ranks(question, [first, second])
        return 0.5 if own == other else float(own < other)


class _Known:
    """A scorer of answers whose scores are known."""

    def __init__(self, version: str, scores: Scores) -> None:
        self.version = version
        self._scores = scores

    async def scores(self, prompt: Prompt, answers: Sequence[str]) -> list[float]:
        return [self._scores[str(prompt), text] for text in answers]


def gold_rewards(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Return the gold reward of each response, for `fairlead compare --reward`."""
    return [gold_worth(question, text) for question, text in zip(prompts, responses, strict=True)]


def gold_scores(every: Sequence[Answers]) -> dict[tuple[str, str], float]:
    """Return the gold reward of every answer. One that was cut off is not punished for that."""
    texts = _texts(every)
    return dict(zip(texts, gold_rewards(*zip(*texts, strict=True)), strict=True))


def reward_scores(config: RunConfig, model: Path, every: Sequence[Answers], kept: Path) -> Scores:
    """Return a reward model's scores of every answer, from the file if it has them.

    Args:
        config: a run, whose `[reward]` applies.
        model: folder of the reward model.
        every: the answers of all models.
        kept: the file.

    Raises:
        FairleadError: the service fails.
    """
    texts = _texts(every)
    known = kept_scores(kept)
    if all(text in known for text in texts):
        return known

    async def work() -> list[float]:
        async with serving(config, {"reward": model}) as addresses:
            return await score(addresses["reward"], texts)

    found = dict(zip(texts, asyncio.run(work()), strict=True))
    write_rows(kept, ({"prompt": one, "text": text, "score": value} for (one, text), value in found.items()))
    return found


def kept_scores(file: Path) -> Scores:
    """Return the scores in a file; none if it is missing or damaged."""
    try:
        return {(row["prompt"], row["text"]): float(row["score"]) for row in read_rows(file)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def compare(judge: Judge, a: Answers, b: Answers, *, seed: int) -> WinRate:
    """Return the win rate of one model against another: the first answers are compared, the second, etc.

    Args:
        judge: who compares.
        a: answers of one model.
        b: answers of the other to the same questions.
        seed: of the interval.
    """
    numbers = itertools.count()

    async def verdict(question: str, first: str, second: str) -> float:
        number = next(numbers)
        return 0.5 if first == second else await judge.verdict(question, first, second, number=number)

    async def verdicts() -> list[list[float]]:
        return [
            [await verdict(question, *pair) for pair in zip(texts, b.texts[question], strict=True)]
            for question, texts in a.texts.items()
        ]

    return win_rate(asyncio.run(verdicts()), seed=seed)


def _texts(every: Sequence[Answers]) -> list[tuple[str, str]]:
    return list(
        dict.fromkeys(
            (question, text) for one in every for question, texts in one.texts.items() for text in texts
        )
    )
