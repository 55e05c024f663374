"""One round of the loop, but for its training: the policy answers, labelers rank, the outcome is measured.

Answers and scores come from the policy and reward services. Leaves files; the report reads them.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from examples.parcel_help import gold, labelers
from examples.parcel_help.corpus import questions
from examples.parcel_help.files import Files, read_answers, write_answers, write_rows
from examples.serving import Answer, ask, score, serving
from fairlead.config import RunConfig
from fairlead.data.records import is_heldout
from fairlead.types import SamplingParams

NUM_TASKS = 800
"""Prompts ranked in a round."""
NUM_ANSWERS = 4
"""Answers ranked against one another: K of the InstructGPT paper."""


def round_config(config: RunConfig, number: int) -> RunConfig:
    """The run of one round: the first in the run's own folder, later ones in `round-<number>/` of it.

    Every reward model starts from SFT and every policy is held against SFT; the policy goes on from the round
    before. Paths are absolute, as every process reads them.
    """
    files = Files(config.folder.root / "data")
    known = tuple(str(files.of_round(r, "rankings").absolute()) for r in range(number + 1))
    fresh = str(files.of_round(number, "fresh_rankings").absolute())
    data = config.data.model_copy(
        update={"preferences": known if number else known[0], "fresh_rankings": fresh}
    )
    if not number:
        return config.model_copy(update={"data": data})
    sft, start = config.folder.sft_model, round_config(config, number - 1).folder.policy_model
    return config.model_copy(
        update={
            "data": data,
            "runs": config.folder.root,
            "name": f"round-{number}",
            "policy": config.policy.model_copy(update={"path": str(start.absolute())}),
            "reference": config.reference.model_copy(update={"path": str(sft.absolute())}),
            "reward_model": config.reward_model.model_copy(update={"path": str(sft.absolute())}),
        }
    )


def sample(config: RunConfig, files: Files, *, tasks: int) -> None:
    """The SFT policy answers the first tasks that will be ranked, and the prompts of the evaluation."""

    async def work() -> None:
        async with serving(config, {"policy": config.folder.sft_model}) as addresses:
            await _answer_tasks(config, files, addresses["policy"], number=0, count=tasks)
            write_answers(files.answers_sft, await _examine(config, addresses["policy"], 0))

    asyncio.run(work())


def rank(config: RunConfig, files: Files, number: int) -> None:
    """Labelers rank the answers of every task; a line for each ranking, K answers with their places.

    Left out are answers that were cut off (the reward model reads whole ones); of an answer that was given
    twice the places are averaged, so two labelers' minds about it may make a tie.
    """
    rng = random.Random(f"{config.seed} labelers {number}")
    ranked = [_ranked([a for a in answers if a.ended], rng) for answers in _tasks(files, number)]
    write_rows(files.of_round(number, "rankings"), (row for row in ranked if len(row["responses"]) > 1))


def evaluate(config: RunConfig, files: Files, number: int, *, next_tasks: int = 0) -> None:
    """The tuned policy answers; the reward model scores these answers, earlier ones, and comparisons.

    Args:
        config: the round's own.
        files: the quickstart's.
        number: the round.
        next_tasks: tasks of the next round that the tuned policy answers as well; its services run now.
    """

    async def work() -> None:
        models = {"policy": config.folder.policy_model, "reward": config.folder.reward_model}
        async with serving(config, models) as addresses:
            after = await _examine(config, addresses["policy"], number)
            write_answers(files.of_round(number, "answers"), after)
            if next_tasks:
                await _answer_tasks(config, files, addresses["policy"], number=number + 1, count=next_tasks)
            texts = _to_score(config, files, number)
            scores = dict(zip(texts, await score(addresses["reward"], texts), strict=True))
        write_rows(
            files.of_round(number, "scores"),
            ({"prompt": prompt, "text": text, "score": value} for (prompt, text), value in scores.items()),
        )

    asyncio.run(work())


def pairs(ranking: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(better, worse) of every pair of a ranking that is no tie."""
    responses = sorted(ranking["responses"], key=lambda response: response["rank"])
    for better, worse in itertools.combinations(responses, 2):
        if better["rank"] < worse["rank"]:
            yield better["text"], worse["text"]


def _to_score(config: RunConfig, files: Files, number: int) -> list[tuple[str, str]]:
    """Answers of the evaluation, of both policies before; held-out answers that were or will be ranked."""
    answers = list(itertools.chain(*read_answers(files.answers_sft)))
    for known in range(max(0, number - 1), number + 1):
        answers += itertools.chain(*read_answers(files.of_round(known, "answers")))
    for known in range(number + 2):
        if files.of_round(known, "tasks").exists():
            tasks = itertools.chain(*_tasks(files, known))
            answers += (answer for answer in tasks if is_heldout(config, answer.prompt))
    return list(dict.fromkeys((answer.prompt, answer.text) for answer in answers))


async def _answer_tasks(config: RunConfig, files: Files, address: str, *, number: int, count: int) -> None:
    prompts = [question.text for question in questions()]
    tasks = random.Random(f"{config.seed} tasks {number}").choices(prompts, k=count)
    sampling = _sampling(config, "tasks", number)
    answers = await ask(address, tasks, samples=NUM_ANSWERS, sampling=sampling)
    write_answers(files.of_round(number, "tasks"), answers)


def _ranked(answers: Sequence[Answer], rng: random.Random) -> dict[str, Any]:
    worths = [gold.reward(answer.prompt, answer.text, ended=True) for answer in answers]
    places: dict[str, list[int]] = {}
    for place, index in enumerate(labelers.rank(worths, rng=rng), start=1):
        places.setdefault(answers[index].text, []).append(place)
    responses = [{"text": text, "rank": fmean(found)} for text, found in places.items()]
    return {"prompt": answers[0].prompt if answers else "", "responses": responses}


def _tasks(files: Files, number: int) -> list[list[Answer]]:
    return read_answers(files.of_round(number, "tasks"))


async def _examine(config: RunConfig, address: str, number: int) -> list[list[Answer]]:
    """Answers to held-out prompts, `evaluation.num_prompts` in all, and as many to prompts of training."""
    prompts = [question.text for question in questions()]
    sampling = _sampling(config, "evaluation", number)
    found = []
    for side in (True, False):
        asked = [prompt for prompt in prompts if is_heldout(config, prompt) is side]
        if asked:
            samples = max(1, round(config.evaluation.num_prompts / len(asked)))
            samples = min(samples, config.policy.max_samples)
            found += await ask(address, asked, samples=samples, sampling=sampling)
    return found


def _sampling(config: RunConfig, purpose: str, number: int) -> SamplingParams:
    seed = random.Random(f"{config.seed} {purpose} {number}").getrandbits(62)
    temperature = config.evaluation.temperature if purpose == "evaluation" else config.sampling.temperature
    return SamplingParams(temperature=temperature, max_new_tokens=config.sampling.max_new_tokens, seed=seed)
