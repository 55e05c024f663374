"""What the worker does with a task that fails: a dead letter, a failure that counts, or one that does not."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from fairlead.types import DeadLetter, PromptTask
from services.rollout_worker import coalesced_calls
from tests.scripted_services import (
    MAX_SEQUENCE_TOKENS,
    VOCABULARY_SIZE,
    Script,
    answer_backwards,
    completion,
)
from tests.unit.services.rollout_worker.worker_bench import NAN, bench, task


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (task(0, prompt=()), "prompt_empty"),
        (task(0, prompt=(1,) * MAX_SEQUENCE_TOKENS), "prompt_too_long"),
        (task(0, prompt=(1, VOCABULARY_SIZE)), "prompt_token_unknown"),
    ],
)
async def test_invalid_prompt_is_dead_lettered_at_once(bad: PromptTask, reason: str) -> None:
    script = Script()
    async with bench(script, tasks=[bad, task(1)]) as b:
        outcomes = await b.outcomes(2)
        await b.until(lambda: b.counted("dead_letter") == 1)
    assert isinstance(outcomes[0], DeadLetter)
    assert outcomes[0].reason == reason
    assert isinstance(outcomes[1], tuple)
    assert len(script.requests) == 1


@pytest.mark.parametrize("service", ["policy", "reward", "reference"])
async def test_task_refused_by_a_service_is_dead_lettered_at_once(service: str) -> None:
    asked = 0

    async def refuse(*arguments):
        nonlocal asked
        asked += 1
        await arguments[-1].abort(grpc.StatusCode.INVALID_ARGUMENT, "stop_strings: got 99, allowed: 8")

    part = {"policy": "generate", "reward": "score", "reference": "logprobs"}[service]
    async with bench(Script(**{part: refuse}), tasks=[task(0)]) as b:
        result = (await b.outcomes(1))[0]
    assert result == DeadLetter(f"refused_by_{service}", "stop_strings: got 99, allowed: 8")
    assert asked == 1


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("score", "reward_not_finite"),
        ("logprobs", "reference_not_finite"),
        ("generate", "policy_not_finite"),
    ],
)
async def test_result_that_is_not_finite_counts_as_a_failure(part: str, reason: str) -> None:
    asked = 0

    async def broken(*arguments):
        nonlocal asked
        asked += 1
        if part == "score":
            return NAN
        if part == "logprobs":
            return [NAN] * len(arguments[0].response_token_ids)
        found = completion([1, 2])
        found.logprobs[1] = NAN
        return found

    script = Script(**{part: broken})
    async with bench(script, tasks=[task(0)]) as b:
        result = (await b.outcomes(1))[0]
        await b.until(lambda: b.counted("dead_letter") == 1)
    assert isinstance(result, DeadLetter)
    assert result.reason == reason
    # A task that failed before may kill replicas: its calls are exclusive.
    assert [request.alone for request in script.requests] == [False, True, True]
    exclusive_calls = [] if part == "generate" else [False, True, True]
    assert script.exclusive == {"reward": exclusive_calls, "reference": exclusive_calls}
    assert "nan" in result.detail
    assert asked == 3
    assert b.counted("failed") == 2


@pytest.mark.parametrize("deaths", [1, 2])
async def test_tasks_of_a_dead_replica_are_repeated_together_and_exclusive_only_after_a_second_death(
    deaths: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalesced_calls, "_SPREAD_SECONDS", 0.0)
    number, seen, running = 6, 0, 0

    async def generate(request, context):
        nonlocal seen, running
        seen += 1
        if seen <= deaths * number:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        running += 1
        await asyncio.sleep(0)
        assert not request.alone or running == 1
        running -= 1
        return await answer_backwards(request, context)

    script = Script(generate=generate)
    async with bench(script, tasks=[task(i) for i in range(number)]) as b:
        outcomes = await b.outcomes(number)
    assert all(isinstance(result, tuple) for result in outcomes.values())
    asked = [request.alone for request in script.requests]
    assert asked == [False] * (2 * number) + [True] * (number if deaths == 2 else 0)
    assert script.batches == [number] * 2
    assert b.counted("failed") == 0


async def test_internal_error_of_a_service_counts_as_a_failure() -> None:
    async def broken(request, context):
        await context.abort(grpc.StatusCode.INTERNAL, "internal error 4711")

    async with bench(Script(generate=broken), tasks=[task(0)]) as b:
        result = (await b.outcomes(1))[0]
    assert isinstance(result, DeadLetter)
    assert result.reason == "service_error"
    assert "4711" in result.detail


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.FAILED_PRECONDITION,
    ],
)
async def test_unavailable_services_count_as_no_failure(code: grpc.StatusCode) -> None:
    away = True

    async def generate(request, context):
        if away:
            await context.abort(code, "not now")
        return await answer_backwards(request, context)

    script = Script(generate=generate)
    async with bench(script, tasks=[task(i) for i in range(6)]) as b:
        await b.until(lambda: b.counted("released") >= 7)
        assert not b.worker.ready
        assert len(script.requests) < 40, "it must not spin"
        away = False
        outcomes = await b.outcomes(6, seconds=20)
        await b.until(lambda: b.worker.ready)
        entries = b.trainer.read(after="0", count=10, block_seconds=0)
    assert all(isinstance(result, tuple) for result in outcomes.values())
    assert {(entry.outcome.deliveries, entry.outcome.failures) for entry in entries} == {(1, 0)}


async def test_old_weights_count_as_no_failure() -> None:
    fresh = False

    async def generate(request, context):
        return completion([1, 2], incarnation=2 if fresh else 0)

    async with bench(Script(generate=generate), tasks=[task(0)]) as b:
        await b.until(lambda: b.counted("released") >= 2)
        fresh = True
        assert isinstance((await b.outcomes(1))[0], tuple)
