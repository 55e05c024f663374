"""The answers of every model to the held-out questions, through the policy service.

A pretrained model gets the bare question, as the others do, and a second time after two answered ones: as GPT
was prompted in InstructGPT. The answers are kept in a file; judges read only prompts and texts.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from examples.headline import pages
from examples.headline.pages import SEPARATOR, entry
from examples.parcel_help import corpus
from examples.parcel_help.corpus import Question
from fairlead.config import RunConfig
from fairlead.local.serving import GeneratedAnswer, ask, serving
from fairlead.rounds.files import read_rows, write_rows
from fairlead.types import SamplingParams

Stage = Literal["pretrained", "prompted", "fine-tuned", "tuned"]
STAGES: tuple[Stage, ...] = ("pretrained", "prompted", "fine-tuned", "tuned")
PERFECT = "perfect"
"""In place of a size: what a model would answer that had learnt its texts perfectly."""
NUM_SHOTS = 2
"""Answered questions before the question of a prompted model."""

Model = tuple[Stage, str]
"""How a model was trained or prompted, and the name of its size."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of one model."""

    model: Model
    """Which one."""
    texts: dict[str, list[str]]
    """By question, as many to each."""
    ended: float
    """Share of answers that were not cut off at the maximum length."""


def imitations(
    known: Sequence[Question], questions: Sequence[str], *, num_answers: int, seed: int
) -> list[Answers]:
    """Return answers of perfect imitators of pages and of demonstrations: the limits of models of any size.

    Args:
        known: questions that occur in pages.
        questions: those to answer.
        num_answers: answers to each.
        seed: of all draws.
    """
    rng = random.Random(f"{seed} imitations")
    asked = {question.text: question for question in corpus.questions()}
    draws: dict[Stage, Callable[[Question], str]] = {
        "pretrained": lambda one: pages.continuation(one, rng=rng, asked=known),
        "fine-tuned": lambda one: corpus.answer(one, skill=rng.random(), rng=rng),
    }
    found = []
    for stage, draw in draws.items():
        texts = {text: [draw(asked[text]) for _ in range(num_answers)] for text in questions}
        found.append(Answers((stage, PERFECT), texts, 1.0))
    return found


def shots(asked: Sequence[Question], *, seed: int) -> str:
    """Return answered questions and a separator, to be followed by a question.

    Args:
        asked: questions to choose from, of which the models know the words; the answers are the best ones.
        seed: of the choice.
    """
    rng = random.Random(f"{seed} shots")
    chosen = rng.sample(asked, k=NUM_SHOTS)
    return "".join(f"{entry(one, _best(one, rng))} {SEPARATOR} " for one in chosen)


def sample(
    config: RunConfig,
    model: Path,
    prompts: Mapping[Stage, str],
    questions: Sequence[str],
    *,
    size: str,
    num_answers: int,
) -> list[dict[str, Any]]:
    """Return the lines of a file of answers of one model.

    Args:
        config: the run, whose `[sampling]` and `[policy]` apply.
        model: folder of the model.
        prompts: what precedes each question, by stage.
        questions: those to answer.
        size: name of the model's size.
        num_answers: answers to each question.

    Raises:
        FairleadError: the service fails.
    """
    sampling = SamplingParams(
        temperature=config.evaluation.temperature,
        max_new_tokens=config.sampling.max_new_tokens,
        stop_strings=(SEPARATOR,),
        seed=random.Random(f"{config.seed} answers").getrandbits(62),
    )

    async def work() -> list[list[list[GeneratedAnswer]]]:
        async with serving(config, {"policy": model}) as addresses:
            address = addresses["policy"]
            return [
                await ask(
                    address, [before + one for one in questions], samples=num_answers, sampling=sampling
                )
                for before in prompts.values()
            ]

    return [
        {
            "stage": stage,
            "size": size,
            "prompt": question,
            "answers": [{"text": " ".join(one.text.split()), "ended": one.ended} for one in group],
        }
        for stage, groups in zip(prompts, asyncio.run(work()), strict=True)
        for question, group in zip(questions, groups, strict=True)
    ]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write lines of `sample`."""
    write_rows(path, rows)


def read(path: Path) -> dict[Model, Answers]:
    """Return the answers of every model in a file."""
    rows = read_rows(path)
    models: list[Model] = list(dict.fromkeys((row["stage"], row["size"]) for row in rows))
    found = {}
    for model in models:
        own = [row for row in rows if (row["stage"], row["size"]) == model]
        ended = [answer["ended"] for row in own for answer in row["answers"]]
        texts = {row["prompt"]: [answer["text"] for answer in row["answers"]] for row in own}
        found[model] = Answers(model, texts, sum(ended) / len(ended))
    return found


def _best(question: Question, rng: random.Random) -> str:
    """Return an answer with every good part and no bad one."""
    parts = (
        rng.choice(corpus.GREETINGS),
        rng.choice(corpus.APOLOGIES).format(item=question.item),
        rng.choice(corpus.REMEDIES[question.problem]),
        rng.choice(corpus.CLOSINGS),
    )
    return " ".join(parts)
