"""The checks of the services' results, and the classification of errors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fairlead import errors
from fairlead.clients.rollout import ScoredCompletions
from fairlead.types import (
    Completion,
    FinishReason,
    PromptTask,
    SamplingParams,
    Scores,
    VersionSpan,
    WeightVersion,
)
from services.rollout_worker.assemble import InvalidTask, UnusableResult, assemble, check_completions
from services.rollout_worker.task_failure import FailureAction, classify

OLD, NEW = WeightVersion(1, 3), WeightVersion(2, 1)
TASK = PromptTask(0, (1, 2), "hello", SamplingParams(), OLD)
WHOLE = Completion(
    (5, 6, 7), (-0.1, -0.2, -0.3), FinishReason.LENGTH, (VersionSpan(OLD, 0, 1), VersionSpan(NEW, 1, 3))
)


def assembled(scores: tuple[float, ...] = (1.0,), logprobs: tuple[float, ...] | None = (-1.0, -2.0, -3.0)):
    found = ScoredCompletions(
        completions=(WHOLE,),
        scores=Scores(scores, "judge-1", (5,)),
        reference_logprobs=None if logprobs is None else (logprobs,),
        generate_seconds=1.0,
        score_seconds=2.0,
    )
    [rollout] = assemble(found, scored_as_text=False)
    return rollout


def test_complete_completion_is_accepted() -> None:
    check_completions(TASK, [WHOLE])
    rollout = assembled()
    assert (rollout.completion, rollout.score, rollout.reference_logprobs) == (WHOLE, 1.0, (-1.0, -2.0, -3.0))
    # The trainer computes them.
    assert assembled(logprobs=None).reference_logprobs == ()


@pytest.mark.parametrize(
    "spans",
    [
        (),
        (VersionSpan(OLD, 0, 2),),
        (VersionSpan(OLD, 1, 3),),
        (VersionSpan(OLD, 0, 2), VersionSpan(NEW, 1, 3)),
        (VersionSpan(OLD, 0, 0), VersionSpan(NEW, 0, 3)),
        (VersionSpan(OLD, 0, 4),),
    ],
)
def test_every_token_needs_one_version(spans: tuple[VersionSpan, ...]) -> None:
    with pytest.raises(UnusableResult) as raised:
        check_completions(TASK, [replace(WHOLE, version_spans=spans)])
    assert raised.value.reason == "completion_malformed"


def test_completion_without_tokens_or_finish_reason_is_malformed() -> None:
    for broken in (
        replace(WHOLE, token_ids=(), logprobs=(), version_spans=()),
        replace(WHOLE, finish_reason=None),
    ):
        with pytest.raises(UnusableResult, match="expected at least one token and a reason") as raised:
            check_completions(TASK, [broken])
        assert raised.value.reason == "completion_malformed"


def test_weights_older_than_min_version_are_stale() -> None:
    with pytest.raises(errors.StaleWeights, match="used weights 1-2; the task needs 1-3 or newer"):
        check_completions(TASK, [replace(WHOLE, version_spans=(VersionSpan(WeightVersion(1, 2), 0, 3),))])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"scores": (float("inf"),)}, "reward_not_finite"),
        ({"scores": ()}, "answer_malformed"),
        ({"scores": (1.0, 2.0)}, "answer_malformed"),
        ({"logprobs": (-1.0, -2.0)}, "answer_malformed"),
        ({"logprobs": ()}, "answer_malformed"),
        ({"logprobs": (-1.0, float("-inf"), -1.0)}, "reference_not_finite"),
    ],
)
def test_missing_or_infinite_results_are_unusable(arguments: dict, reason: str) -> None:
    with pytest.raises(UnusableResult) as raised:
        assembled(**arguments)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("error", "action", "reason"),
    [
        (InvalidTask("prompt_too_long", "…"), FailureAction.DEAD_LETTER, "prompt_too_long"),
        (UnusableResult("reward_not_finite", "…"), FailureAction.COUNT, "reward_not_finite"),
        (errors.Unavailable("gone"), FailureAction.RELEASE, "service_unavailable"),
        (errors.Overloaded("full", retry_after_seconds=1), FailureAction.RELEASE, "service_overloaded"),
        (errors.StaleWeights("old"), FailureAction.RELEASE, "weights_too_old"),
        (errors.DeadlineExceeded("slow"), FailureAction.RELEASE, "service_too_slow"),
        (errors.Unauthenticated("who"), FailureAction.RELEASE, "service_refuses_us"),
        (errors.InternalError("bug"), FailureAction.COUNT, "service_error"),
        (errors.CorruptData("odd"), FailureAction.COUNT, "answer_malformed"),
        (ZeroDivisionError("ours"), FailureAction.COUNT, "worker_error"),
    ],
)
def test_errors_are_classified(error: Exception, action: FailureAction, reason: str) -> None:
    failure = classify(error)
    assert (failure.action, failure.letter.reason) == (action, reason)
