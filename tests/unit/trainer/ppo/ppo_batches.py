"""Four rollouts, a dead task and a recipe for the tests of an update, without a queue."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from fairlead.config.training import PpoSection
from fairlead.types import (
    Completion,
    DeadLetter,
    FinishReason,
    Outcome,
    PromptTask,
    Rollout,
    SamplingParams,
    VersionSpan,
    WeightVersion,
)
from trainer.ppo import actor_critic, batch

SECTION = PpoSection(
    device="cpu",
    batch_size=4,
    mini_batch_size=4,
    learning_rate=1e-3,
    critic_learning_rate=1e-3,
    updates=10,
    kl_coefficient=0.1,
    missing_eos_penalty=2.0,
    score_clip=3.0,
)
ANSWERS = {
    7: ((1, 5), (6, 7, 2), 1.0),
    5: ((1,), (9, 10, 11, 12, 13), 9.0),
    6: ((1, 20, 21), (2,), -1.0),
    9: ((1, 30), (31, 32), 0.5),
}


def outcome(
    task_id: int, prompt: tuple[int, ...], answer: tuple[int, ...], score: float, update: int = 0
) -> Outcome:
    draw = torch.Generator().manual_seed(task_id)
    logprobs = (-4 + 0.1 * torch.randn(len(answer), generator=draw)).tolist()
    version = WeightVersion(1, update)
    completion = Completion(
        token_ids=answer,
        logprobs=tuple(logprobs),
        finish_reason=FinishReason.STOP if answer[-1] == 2 else FinishReason.LENGTH,
        version_spans=(VersionSpan(version, 0, len(answer)),),
    )
    rollout = Rollout(completion, score, "test", tuple(value - 0.25 for value in logprobs))
    return Outcome(PromptTask(task_id, prompt, "", SamplingParams(), version), (rollout,), "w", 1, 0)


def group(*outcomes: Outcome) -> Outcome:
    """One task with the answers of several outcomes."""
    task = replace(outcomes[0].task, num_samples=len(outcomes))
    return replace(outcomes[0], task=task, result=sum((each.rollouts for each in outcomes), ()))


def rollouts(stale: frozenset[int] = frozenset()) -> batch.RolloutBatch:
    """The tasks in `stale` were answered by weights one update older than those about to be trained."""
    dead = Outcome(
        PromptTask(8, (1,), "", SamplingParams(), WeightVersion(1, 0)), DeadLetter("x", ""), "w", 1, 3
    )
    found = batch.from_outcomes(
        [
            dead,
            *(outcome(task, *answer, 3 if task in stale else 4) for task, answer in ANSWERS.items()),
        ],
        torch.device("cpu"),
        version=WeightVersion(2, 4),
    )
    assert found is not None
    return found


def exact_rollouts(stale: frozenset[int] = frozenset()) -> batch.RolloutBatch:
    """In float64, for models in float64."""
    found = rollouts(stale)
    names = ("behaviour_N", "reference_N", "scores_B")
    return replace(found, **{name: getattr(found, name).double() for name in names})


def double(models: actor_critic.ActorCritic) -> actor_critic.ActorCritic:
    policy, critic = copy.deepcopy(models.policy).double(), copy.deepcopy(models.critic).double()
    with torch.no_grad():  # a head that is not zero, so that the body of the critic gets a gradient
        critic.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return actor_critic.ActorCritic(policy, critic, SECTION)
