"""Check the results of the services for one task and build the rollouts that the trainer gets.

Sits between the answers of the services and the queue. Pure functions; knows neither gRPC nor Redis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fairlead.clients.rollout import ScoredCompletions
from fairlead.errors import StaleWeights
from fairlead.types import Completion, ModelInfo, PromptTask, Rollout


class UnusableResult(Exception):
    """A service returned something that cannot be trained on; counts as a failure of the task."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        """Stable name, listed in docs/queue-protocol.md."""
        super().__init__(detail)


class InvalidTask(Exception):
    """The task itself is invalid: it is dead-lettered at once."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        """Stable name, listed in docs/queue-protocol.md."""
        super().__init__(detail)


def check_task(task: PromptTask, policy: ModelInfo, *, scored_as_text: bool) -> None:
    """Check a task for mistakes that a service would refuse, so that each gets its own reason.

    Raises:
        InvalidTask: if the policy cannot read the prompt, or the reward model needs text and there is none.
    """
    prompt = task.prompt_token_ids
    if not prompt:
        raise InvalidTask("prompt_empty", "the prompt has no token ids")
    if len(prompt) >= policy.max_sequence_tokens:
        raise InvalidTask(
            "prompt_too_long",
            f"the prompt has {len(prompt)} tokens; the policy's limit for prompt and completion together is "
            f"{policy.max_sequence_tokens}",
        )
    unknown = next((token for token in prompt if not 0 <= token < policy.vocabulary_size), None)
    if unknown is not None:
        raise InvalidTask(
            "prompt_token_unknown",
            f"the prompt has token id {unknown}; the policy's ids are 0 to {policy.vocabulary_size - 1}",
        )
    if scored_as_text and not (task.prompt_text or task.messages):
        raise InvalidTask(
            "prompt_without_text", "the reward model reads text, and the prompt has only token ids"
        )


def check_completions(task: PromptTask, completions: Sequence[Completion]) -> None:
    """Check that each completion is complete: ids, finite log-probs, and new enough weights for every token.

    Raises:
        UnusableResult: if something is missing or not finite.
        StaleWeights: if some weights are older than the task allows.
    """
    if len(completions) != task.num_samples:
        raise UnusableResult(
            "completion_malformed",
            f"the policy returned {len(completions)} completions; the task has {task.num_samples} samples",
        )
    for completion in completions:
        _check_completion(task, completion)


def _check_completion(task: PromptTask, completion: Completion) -> None:
    count = len(completion.token_ids)
    if count == 0 or completion.finish_reason is None:
        ended = completion.finish_reason.value if completion.finish_reason else "none"
        raise UnusableResult(
            "completion_malformed",
            f"the policy returned {count} tokens and finish reason {ended}; expected at least one token "
            "and a reason",
        )
    _check_finite("policy_not_finite", "policy", completion.logprobs)
    covered = 0
    for span in completion.version_spans:
        if span.start != covered or span.end <= span.start:
            raise UnusableResult(
                "completion_malformed",
                f"version span [{span.start}, {span.end}): expected a span of at least one token that "
                f"starts at {covered}",
            )
        covered = span.end
        if span.version < task.min_version:
            raise StaleWeights(
                f"the policy used weights {span.version}; the task needs {task.min_version} or newer"
            )
    if covered != count:
        raise UnusableResult(
            "completion_malformed", f"the completion has {count} tokens, but version spans cover {covered}"
        )


def assemble(found: ScoredCompletions, *, scored_as_text: bool) -> tuple[Rollout, ...]:
    """Return a rollout for each completion, its score and its reference log-probs, if those were requested.

    Raises:
        UnusableResult: if a number is missing or not finite.
    """
    completions = found.completions
    scores = found.scores.scores
    reference = found.reference_logprobs
    if len(scores) != len(completions):
        raise UnusableResult(
            "answer_malformed",
            f"the reward service returned {len(scores)} scores for {len(completions)} completions",
        )
    for name, values in found.scores.terms.items():
        if len(values) != len(completions):
            raise UnusableResult(
                "answer_malformed",
                f"the reward service returned {len(values)} scores of the term {name[:40]} for "
                f"{len(completions)} completions",
            )
    if reference is not None and len(reference) != len(completions):
        raise UnusableResult(
            "answer_malformed",
            f"the reference service returned {len(reference)} sequences for {len(completions)} completions",
        )
    rollouts = []
    for index, completion in enumerate(completions):
        logprobs = () if reference is None else reference[index]
        if reference is not None:
            _check_reference(completion, logprobs)
        rollouts.append(
            Rollout(
                completion=completion,
                score=_checked_score(scores[index]),
                reward_version=found.scores.model_version,
                reference_logprobs=logprobs,
                scored_as_text=scored_as_text,
                generate_seconds=found.generate_seconds,
                score_seconds=found.score_seconds,
                terms=tuple(
                    (name, _checked_score(values[index])) for name, values in found.scores.terms.items()
                ),
            )
        )
    return tuple(rollouts)


def _checked_score(score: float) -> float:
    if not math.isfinite(score):
        raise UnusableResult("reward_not_finite", f"the reward model returned score {score}")
    return score


def _check_reference(completion: Completion, logprobs: Sequence[float]) -> None:
    if len(logprobs) != len(completion.token_ids):
        raise UnusableResult(
            "answer_malformed",
            f"the completion has {len(completion.token_ids)} tokens, but the reference service returned "
            f"{len(logprobs)} log-probs",
        )
    _check_finite("reference_not_finite", "reference", logprobs)


def _check_finite(reason: str, service: str, logprobs: Sequence[float]) -> None:
    for position, value in enumerate(logprobs):
        if not math.isfinite(value):
            raise UnusableResult(reason, f"the {service} returned log-prob {value} for token {position}")
