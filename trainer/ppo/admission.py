"""Decide whether an outcome may be trained on, and how stale it is. Pure functions of outcomes and versions.

Every token of every rollout of a task must come from weights of this trainer's lineage that are at most
`max_staleness` updates older than the weights being trained; in synchronous training, from exactly those
weights. Workers check completions before they finish a task (services/rollout_worker/assemble.py); `checked`
repeats that check, because the trainer does not trust what it reads from the queue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fairlead.transports.rollouts.base import UNDECODABLE
from fairlead.transports.weights.base import Ancestor, is_valid
from fairlead.types import DeadLetter, Outcome, PromptTask, Rollout

_OF_THE_TASK = frozenset(
    {
        "prompt_empty",
        "prompt_too_long",
        "prompt_token_unknown",
        "prompt_without_text",
        "policy_not_finite",
        "reward_not_finite",
        "reference_not_finite",
    }
)
"""Reasons of dead letters that follow from prompt, weights and seed (docs/queue-protocol.md)."""

DAMAGED = "damaged_prompt"
"""Refusal of the outcome of an entry that was damaged between trainer and worker."""
_RESENDS = 3
"""How often a task with a damaged entry is sent again; damage that repeats is caused by the task itself."""


def refusal(
    outcome: Outcome,
    expected: PromptTask,
    *,
    update: int,
    max_staleness: int = 0,
    lineage: Sequence[Ancestor],
    deterministic: bool = False,
    damaged_before: int = 0,
) -> str | None:
    """Return why an outcome cannot count, as a stable name; None if it can. A refused task is sent again.

    Args:
        outcome: the outcome that arrived.
        expected: the task as this trainer knows it.
        update: updates done before the first update that could train on it.
        max_staleness: by how many updates its weights may be older.
        lineage: incarnations whose weights count.
        deterministic: accept only dead letters caused by the task itself, not by an unavailable service.
        damaged_before: how often the entry of this task has been damaged before.
    """
    task = outcome.task
    if isinstance(outcome.result, DeadLetter) and outcome.result.reason == UNDECODABLE:
        return DAMAGED if deterministic or damaged_before < _RESENDS else None
    if _question(task) != _question(expected):
        return "other_task"
    if isinstance(outcome.result, DeadLetter):
        return "not_the_tasks_fault" if deterministic and not _is_of_the_task(outcome.result) else None
    versions = outcome.versions
    if not all(is_valid(version, lineage) for version in versions):
        return "other_lineage"
    if not all(update - max_staleness <= version.update <= update for version in versions):
        return "stale"
    return None


def _question(task: PromptTask) -> tuple[object, ...]:
    """Return what the answers of a task depend on, apart from weights."""
    return task.prompt_token_ids, task.sampling, task.num_samples


def _is_of_the_task(letter: DeadLetter) -> bool:
    """Return whether every worker at any time would have produced this dead letter."""
    return letter.reason.startswith("refused_by_") or letter.reason in _OF_THE_TASK


def oldest_update(outcome: Outcome, *, otherwise: int) -> int:
    """Return the update of the weights of the oldest token of all rollouts; `otherwise` for a dead task."""
    return min((version.update for version in outcome.versions), default=otherwise)


def checked(outcome: Outcome) -> Outcome:
    """Return the outcome, as a dead letter if a rollout is malformed: sending it again would not help."""
    if isinstance(outcome.result, DeadLetter):
        return outcome
    faults = [fault for fault in map(_fault, outcome.rollouts) if fault is not None]
    if len(outcome.rollouts) != outcome.task.num_samples:
        faults = [f"{len(outcome.rollouts)} rollouts of a task with {outcome.task.num_samples} samples"]
    if not faults:
        return outcome
    return replace(outcome, result=DeadLetter(reason="malformed_rollout", detail=faults[0]))


def _fault(rollout: Rollout) -> str | None:
    completion = rollout.completion
    length = len(completion.token_ids)
    if not length:
        return "the answer has no tokens"
    # Without reference log-probs, the trainer computes them.
    if length != len(completion.logprobs) or len(rollout.reference_logprobs) not in (0, length):
        return (
            f"{length} tokens, {len(completion.logprobs)} behaviour log-probs, "
            f"{len(rollout.reference_logprobs)} reference log-probs"
        )
    if not completion.version_spans:
        return "no weight version is recorded"
    if not all(math.isfinite(value) for value in (*completion.logprobs, *rollout.reference_logprobs)):
        return "a log-prob is not finite"
    return None if math.isfinite(rollout.score) else f"the score is {rollout.score}"
