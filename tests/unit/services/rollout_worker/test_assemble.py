"""The checks of a rollout's parts, and whose fault an error is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fairlead import errors
from fairlead.types import (
    Completion,
    FinishReason,
    PromptTask,
    SamplingParams,
    Scores,
    VersionSpan,
    WeightVersion,
)
from services.rollout_worker.assemble import Refused, Unusable, assemble, check_completion
from services.rollout_worker.verdict import Verdict, judge

OLD, NEW = WeightVersion(1, 3), WeightVersion(2, 1)
TASK = PromptTask(0, (1, 2), "hello", SamplingParams(), OLD)
WHOLE = Completion(
    (5, 6, 7), (-0.1, -0.2, -0.3), FinishReason.LENGTH, (VersionSpan(OLD, 0, 1), VersionSpan(NEW, 1, 3))
)


def put_together(scores: tuple[float, ...] = (1.0,), logprobs=((-1.0, -2.0, -3.0),)):
    return assemble(
        WHOLE,
        Scores(scores, "judge-1", (5,)),
        logprobs,
        scored_as_text=False,
        generate_seconds=1.0,
        score_seconds=2.0,
    )


def test_a_whole_completion_passes() -> None:
    check_completion(TASK, WHOLE)
    rollout = put_together()
    assert (rollout.completion, rollout.score, rollout.reference_logprobs) == (WHOLE, 1.0, (-1.0, -2.0, -3.0))


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
    with pytest.raises(Unusable) as raised:
        check_completion(TASK, replace(WHOLE, version_spans=spans))
    assert raised.value.reason == "completion_malformed"


def test_an_empty_or_endless_completion_is_malformed() -> None:
    for broken in (
        replace(WHOLE, token_ids=(), logprobs=(), version_spans=()),
        replace(WHOLE, finish_reason=None),
    ):
        with pytest.raises(Unusable, match="and no end") as raised:
            check_completion(TASK, broken)
        assert raised.value.reason == "completion_malformed"


def test_weights_older_than_asked_for_are_stale() -> None:
    with pytest.raises(errors.StaleWeights, match="1-2, not 1-3 or newer"):
        check_completion(TASK, replace(WHOLE, version_spans=(VersionSpan(WeightVersion(1, 2), 0, 3),)))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"scores": (float("inf"),)}, "reward_not_finite"),
        ({"scores": ()}, "answer_malformed"),
        ({"scores": (1.0, 2.0)}, "answer_malformed"),
        ({"logprobs": ((-1.0, -2.0),)}, "answer_malformed"),
        ({"logprobs": ()}, "answer_malformed"),
        ({"logprobs": ((-1.0, float("-inf"), -1.0),)}, "reference_not_finite"),
    ],
)
def test_parts_that_do_not_fit_are_refused(arguments: dict, reason: str) -> None:
    with pytest.raises(Unusable) as raised:
        put_together(**arguments)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("error", "verdict", "reason"),
    [
        (Refused("prompt_too_long", "…"), Verdict.DEAD, "prompt_too_long"),
        (Unusable("reward_not_finite", "…"), Verdict.FAIL, "reward_not_finite"),
        (errors.Unavailable("gone"), Verdict.RELEASE, "service_unavailable"),
        (errors.Overloaded("full", retry_after_seconds=1), Verdict.RELEASE, "service_overloaded"),
        (errors.StaleWeights("old"), Verdict.RELEASE, "weights_too_old"),
        (errors.DeadlineExceeded("slow"), Verdict.RELEASE, "service_too_slow"),
        (errors.Unauthenticated("who"), Verdict.RELEASE, "service_refuses_us"),
        (errors.InternalError("bug"), Verdict.FAIL, "service_error"),
        (errors.CorruptData("odd"), Verdict.FAIL, "answer_malformed"),
        (ZeroDivisionError("ours"), Verdict.FAIL, "worker_error"),
    ],
)
def test_whose_fault_it_was(error: Exception, verdict: Verdict, reason: str) -> None:
    judgement = judge(error)
    assert (judgement.verdict, judgement.letter.reason) == (verdict, reason)
