"""The stages of a round other than training: the policy answers, labelers rank, the outcome is measured.

Answers and scores come from the policy and reward services. The results are files, which the report reads.
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
from examples.serving import GeneratedAnswer, ask, score, serving
from fairlead.config import RunConfig
from fairlead.data.records import is_heldout
from fairlead.local.standby import Standby
from fairlead.types import SamplingParams

NUM_TASKS = 800
"""Number of prompts whose answers are ranked in a round."""
NUM_ANSWERS = 4
"""Number of answers ranked together: K of the InstructGPT paper."""


def round_config(config: RunConfig, number: int) -> RunConfig:
    """Return the configuration of a round: the first in the run's folder, later ones in `round-<number>/`.

    Every reward model starts from the SFT model, which is also the reference of every PPO. The policy
    continues from the round before. Paths are absolute, since several processes read them.
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


def sample(config: RunConfig, files: Files, *, tasks: int, standby: Standby | None = None) -> None:
    """Let the SFT policy answer the tasks of the first round, and the prompts of the evaluation."""

    async def work() -> None:
        async with serving(config, {"policy": config.folder.sft_model}, standby=standby) as addresses:
            await _answer_tasks(config, files, addresses["policy"], number=0, count=tasks)
            write_answers(files.answers_sft, await _evaluation_answers(config, addresses["policy"], 0))

    asyncio.run(work())


def rank(config: RunConfig, files: Files, number: int) -> None:
    """Let labelers rank the answers to every task; write a line with each ranking.

    Answers that were cut off are left out, since the reward model reads whole ones. If an answer occurs more
    than once its ranks are averaged, which may result in a tie.
    """
    rng = random.Random(f"{config.seed} labelers {number}")
    ranked = [_ranked([a for a in answers if a.ended], rng) for answers in _tasks(files, number)]
    write_rows(files.of_round(number, "rankings"), (row for row in ranked if len(row["responses"]) > 1))


def evaluate(config: RunConfig, files: Files, number: int, *, next_tasks: int = 0) -> None:
    """Let the tuned policy answer, and the reward model score these answers, earlier ones and comparisons.

    Args:
        config: the configuration of the round.
        files: the files of the quickstart.
        number: number of the round, from 0.
        next_tasks: number of tasks of the next round that the tuned policy also answers.
    """

    async def work() -> None:
        models = {"policy": config.folder.policy_model, "reward": config.folder.reward_model}
        async with serving(config, models) as addresses:
            after = await _evaluation_answers(config, addresses["policy"], number)
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
    """Yield (better, worse) for every pair of a ranking that is not a tie."""
    responses = sorted(ranking["responses"], key=lambda response: response["rank"])
    for better, worse in itertools.combinations(responses, 2):
        if better["rank"] < worse["rank"]:
            yield better["text"], worse["text"]


def _to_score(config: RunConfig, files: Files, number: int) -> list[tuple[str, str]]:
    """Return the (prompt, answer) pairs to score.

    These are evaluation answers of the SFT policy and of the policies before and after this round, and
    held-out answers that were or will be ranked.
    """
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


def _ranked(answers: Sequence[GeneratedAnswer], rng: random.Random) -> dict[str, Any]:
    gold_rewards = [gold.reward(answer.prompt, answer.text, ended=True) for answer in answers]
    places: dict[str, list[int]] = {}
    for place, index in enumerate(labelers.rank(gold_rewards, rng=rng), start=1):
        places.setdefault(answers[index].text, []).append(place)
    responses = [{"text": text, "rank": fmean(found)} for text, found in places.items()]
    return {"prompt": answers[0].prompt if answers else "", "responses": responses}


def _tasks(files: Files, number: int) -> list[list[GeneratedAnswer]]:
    return read_answers(files.of_round(number, "tasks"))


async def _evaluation_answers(config: RunConfig, address: str, number: int) -> list[list[GeneratedAnswer]]:
    """Return `evaluation.num_prompts` answers to held-out prompts, and as many to training prompts."""
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
