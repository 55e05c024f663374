"""Parts of a rollout → a rollout that the trainer can trust, or the reason why not.

Between the answers of the services and the queue. Pure functions; knows neither gRPC nor Redis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fairlead.errors import StaleWeights
from fairlead.types import Completion, ModelInfo, PromptTask, Rollout, Scores


class Unusable(Exception):
    """A service answered something that cannot be trained on; counts as an explicit failure of the task."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        """Stable name, as in docs/queue-protocol.md."""
        super().__init__(detail)


class Refused(Exception):
    """The task itself is at fault: it is dead-lettered at once."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        """Stable name, as in docs/queue-protocol.md."""
        super().__init__(detail)


def check_task(task: PromptTask, policy: ModelInfo, *, scored_as_text: bool) -> None:
    """Finds what would be refused anyway, so that it gets its own name.

    Raises:
        Refused: if the policy cannot take the prompt, or the reward model has no text to read.
    """
    prompt = task.prompt_token_ids
    if not prompt:
        raise Refused("prompt_empty", "the prompt has no token ids")
    if len(prompt) >= policy.max_sequence_tokens:
        raise Refused(
            "prompt_too_long",
            f"{len(prompt)} tokens, the policy reads {policy.max_sequence_tokens} with the answer",
        )
    foreign = next((token for token in prompt if not 0 <= token < policy.vocabulary_size), None)
    if foreign is not None:
        raise Refused(
            "prompt_token_unknown",
            f"the prompt has token id {foreign}, the policy knows 0 to {policy.vocabulary_size - 1}",
        )
    if scored_as_text and not (task.prompt_text or task.messages):
        raise Refused("prompt_without_text", "the reward model reads text, and the prompt has only token ids")


def check_completion(task: PromptTask, completion: Completion) -> None:
    """A completion is whole: ids, finite log-probs, and weights for every token that are new enough.

    Raises:
        Unusable: if it is not whole.
        StaleWeights: if its weights are older than the task allows.
    """
    count = len(completion.token_ids)
    if count == 0 or completion.finish_reason is None:
        raise Unusable("completion_malformed", f"the policy answered {count} tokens and no end")
    _check_finite("policy_not_finite", "policy", completion.logprobs)
    covered = 0
    for span in completion.version_spans:
        if span.start != covered or span.end <= span.start:
            raise Unusable(
                "completion_malformed", f"weights of tokens {span.start} to {span.end} after {covered}"
            )
        covered = span.end
        if span.version < task.min_version:
            raise StaleWeights(
                f"the policy answered with weights {span.version}, not {task.min_version} or newer"
            )
    if covered != count:
        raise Unusable("completion_malformed", f"{count} tokens, weights are told of {covered}")


def assemble(
    completion: Completion,
    scores: Scores,
    reference_logprobs: Sequence[tuple[float, ...]],
    *,
    scored_as_text: bool,
    generate_seconds: float,
    score_seconds: float,
) -> Rollout:
    """One rollout from one completion, its score and its reference log-probs.

    Raises:
        Unusable: if numbers are missing or not finite.
    """
    if len(scores.scores) != 1 or len(reference_logprobs) != 1:
        raise Unusable(
            "answer_malformed",
            f"{len(scores.scores)} scores and {len(reference_logprobs)} reference answers for one completion",
        )
    [score], [reference] = scores.scores, reference_logprobs
    if not math.isfinite(score):
        raise Unusable("reward_not_finite", f"the reward model scored {score}")
    if len(reference) != len(completion.token_ids):
        raise Unusable(
            "answer_malformed", f"{len(completion.token_ids)} tokens, {len(reference)} reference log-probs"
        )
    _check_finite("reference_not_finite", "reference", reference)
    return Rollout(
        completion=completion,
        score=score,
        reward_version=scores.model_version,
        reference_logprobs=tuple(reference),
        scored_as_text=scored_as_text,
        generate_seconds=generate_seconds,
        score_seconds=score_seconds,
    )


def _check_finite(reason: str, service: str, logprobs: Sequence[float]) -> None:
    for position, value in enumerate(logprobs):
        if not math.isfinite(value):
            raise Unusable(reason, f"the {service}'s log-prob of token {position} is {value}")
