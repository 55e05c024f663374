"""Answers of the policy: K to each task that labelers will rank, and those of the evaluation.

All draws are seeded by the run's seed, the purpose and the round. Answers come from a policy service.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.config import RunConfig
from fairlead.data.chat import Prompt, question
from fairlead.data.records import is_heldout
from fairlead.local.serving import GeneratedAnswer, ask
from fairlead.types import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """What is ranked in a round."""

    num_tasks: int
    """Number of prompts whose answers are ranked."""
    num_answers: int = 4
    """Number of answers ranked together: K of the InstructGPT paper, which had 4 to 9."""
    with_replacement: bool = False
    """Whether a prompt may be drawn more than once in a round; for a small set of prompts."""


async def answer_tasks(
    config: RunConfig, address: str, prompts: Sequence[Prompt], plan: TaskPlan, *, number: int
) -> list[list[GeneratedAnswer]]:
    """Return `plan.num_answers` answers to prompts drawn at random.

    Args:
        config: the run, whose `[sampling]` applies.
        address: of the policy service.
        prompts: to draw from; all are used if there are fewer than `plan.num_tasks`.
        plan: what is ranked.
        number: number of the round, from 0.
    """
    rng = random.Random(f"{config.seed} tasks {number}")
    if plan.with_replacement:
        tasks = rng.choices(prompts, k=plan.num_tasks)
    else:
        tasks = rng.sample(prompts, k=min(plan.num_tasks, len(prompts)))
    sampling = _sampling(config, "tasks", number, config.sampling.temperature)
    return await ask(address, tasks, samples=plan.num_answers, sampling=sampling)


async def answer_evaluation(
    config: RunConfig, address: str, prompts: Sequence[Prompt], *, number: int
) -> list[list[GeneratedAnswer]]:
    """Return about `evaluation.num_prompts` answers to held-out prompts, and as many to training prompts.

    Args:
        config: the run, whose `[evaluation]` applies.
        address: of the policy service.
        prompts: of both sides.
        number: number of the round, from 0.
    """
    sampling = _sampling(config, "evaluation", number, config.evaluation.temperature)
    wanted = config.evaluation.num_prompts
    found: list[list[GeneratedAnswer]] = []
    for side in (True, False):
        asked = [prompt for prompt in prompts if is_heldout(config, question(prompt)) is side]
        if len(asked) > wanted:
            # The same prompts in every round, so that rounds can be compared.
            asked = random.Random(f"{config.seed} evaluation {side}").sample(asked, k=wanted)
        if asked:
            samples = min(max(1, round(wanted / len(asked))), config.policy.max_samples)
            found += await ask(address, asked, samples=samples, sampling=sampling)
    return found


def _sampling(config: RunConfig, purpose: str, number: int, temperature: float) -> SamplingParams:
    seed = random.Random(f"{config.seed} {purpose} {number}").getrandbits(62)
    return SamplingParams(temperature=temperature, max_new_tokens=config.sampling.max_new_tokens, seed=seed)
