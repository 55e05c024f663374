"""The worker's loop: what a rollout contains, how many are made at a time, and which services fit."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

import pytest
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.errors import ConfigError
from fairlead.types import DeadLetter, PromptTask, SamplingParams, WeightVersion
from fairlead.v1 import tokens_pb2
from services.rollout_worker.model_services import ModelServices
from tests.scripted_services import (
    Script,
    answer_backwards,
    clients_of,
    completion,
    minus_one,
    score_length,
    serving,
)
from tests.unit.services.rollout_worker.worker_bench import NAN, bench, task


async def test_rollout_has_the_results_of_the_services() -> None:
    script = Script()
    async with bench(script, tasks=[task(4)]) as b:
        result = (await b.outcomes(1))[4]
    assert isinstance(result, tuple)
    [result] = result
    assert result.completion.token_ids == (3, 2, 1)
    assert (result.score, result.reward_version, result.scored_as_text) == (3.0, "judge-1", False)
    assert result.reference_logprobs == (-0.5, -0.5, -0.5)
    assert result.generate_seconds > 0
    assert result.score_seconds > 0
    [request] = script.requests
    assert request.request_id == "tests-4"
    assert (request.sampling.seed, request.num_samples) == (1004, 1)
    assert (request.min_version.incarnation, request.min_version.update) == (1, 3)


async def test_answers_of_a_group_travel_together_and_fail_together() -> None:
    """One call of each service for a task; a sample that fails fails its task, and no other one."""
    made = Counter()

    async def generate(request, _):
        made[request.sampling.seed] += 1
        return completion([7] * ((made[request.sampling.seed] - 1) % 4 + 1))

    async def score(item, _):
        answer = item.tokens.response_token_ids
        return NAN if len(answer) == 3 and item.tokens.prompt_token_ids[0] == 9 else float(len(answer))

    async def logprobs(sequence, temperature, _):
        return [-temperature] * len(sequence.response_token_ids)

    script = Script(generate=generate, score=score, logprobs=logprobs)
    tasks = [task(0, samples=4), task(1, prompt=(9, 2), samples=4), task(2, samples=4)]
    async with bench(script, tasks=tasks) as b:
        outcomes = await b.outcomes(3)
    for number in (0, 2):
        group = outcomes[number]
        assert isinstance(group, tuple)
        assert [len(rollout.completion.token_ids) for rollout in group] == [1, 2, 3, 4]
        assert [rollout.score for rollout in group] == [1.0, 2.0, 3.0, 4.0]
        assert [len(rollout.reference_logprobs) for rollout in group] == [1, 2, 3, 4]
    assert isinstance(outcomes[1], DeadLetter)
    assert outcomes[1].reason == "reward_not_finite"
    assert {request.num_samples for request in script.requests} == {4}
    for sizes in script.sizes.values():
        assert {size % 4 for size in sizes} == {0}


async def test_every_answer_is_scored_at_its_end_also_one_that_was_cut_off_or_stopped_by_a_text() -> None:
    finish = {
        0: tokens_pb2.FINISH_REASON_STOP,  # by EOS or by a stop string
        1: tokens_pb2.FINISH_REASON_LENGTH,
    }
    scored, looked_up = [], []

    async def generate(request, _):
        number = request.sampling.seed - 1000
        found = completion([5, 6, 7 + number])
        found.finish_reason = finish[number]
        return found

    async def score(item, context):
        scored.append(item)
        return await score_length(item, context)

    async def logprobs(sequence, temperature, context):
        looked_up.append(tuple(sequence.response_token_ids))
        return await minus_one(sequence, temperature, context)

    script = Script(generate=generate, score=score, logprobs=logprobs)
    async with bench(script, tasks=[task(number) for number in finish]) as b:
        outcomes = await b.outcomes(len(finish))
    answers = [(5, 6, 7), (5, 6, 8)]
    assert sorted(tuple(item.tokens.response_token_ids) for item in scored) == answers
    assert all(item.tokens.append_end for item in scored)
    # The end that the reward model reads is no token of the policy: it has no log-prob.
    assert sorted(looked_up) == answers
    assert [outcomes[number][0].completion.token_ids for number in finish] == answers


async def test_reward_and_reference_are_called_at_the_same_time() -> None:
    both = asyncio.Barrier(2)

    async def score(item, context):
        await both.wait()
        return await score_length(item, context)

    async def logprobs(sequence, temperature, context):
        await both.wait()
        return await minus_one(sequence, temperature, context)

    async with bench(Script(score=score, logprobs=logprobs), tasks=[task(0)]) as b:
        assert isinstance((await b.outcomes(1))[0], tuple)


@pytest.mark.parametrize(("in_flight", "samples"), [(4, 1), (9, 2)])
async def test_at_most_max_in_flight_answers_are_made_at_the_same_time(in_flight: int, samples: int) -> None:
    running, most = 0, 0
    full = asyncio.Event()

    async def generate(request, context):
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 4:
            full.set()
        await full.wait()
        running -= 1
        return await answer_backwards(request, context)

    tasks = [task(number, samples=samples) for number in range(20)]
    async with bench(Script(generate=generate), tasks=tasks, in_flight=in_flight) as b:
        assert len(await b.outcomes(20)) == 20
        await b.until(lambda: b.counted("finished") == 20)
    assert most == 4
    assert b.trainer.stats().in_flight == 0


async def test_tasks_above_the_limit_are_not_claimed() -> None:
    hold = asyncio.Event()

    async def generate(request, context):
        await hold.wait()
        return await answer_backwards(request, context)

    async with bench(Script(generate=generate), tasks=[task(i) for i in range(5)], in_flight=2) as b:
        await b.until(lambda: b.trainer.stats().in_flight == 2)
        assert b.trainer.stats().waiting == 3
        hold.set()
        await b.outcomes(5)


async def test_text_is_scored_if_the_reward_tokenizer_differs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    items = []

    async def score(item, context):
        items.append(item)
        return 1.5

    script = Script(score=score)
    script.fingerprints["reward"] = "two" * 20
    without_text = PromptTask(1, (1, 2), "", SamplingParams(), WeightVersion(1, 0))
    async with bench(script, tasks=[task(0), without_text]) as b:
        outcomes = await b.outcomes(2)
    assert isinstance(outcomes[0], tuple)
    assert outcomes[0][0].scored_as_text
    assert isinstance(outcomes[1], DeadLetter)
    assert outcomes[1].reason == "prompt_without_text"
    [item] = items
    assert (item.text.prompt, item.text.response) == ("prompt 0", "3 2 1")
    assert "completions are scored as text" in caplog.text


async def test_policy_and_reference_with_different_tokenizers_are_refused() -> None:
    script = Script()
    script.fingerprints["reference"] = "two" * 20
    async with serving(script), clients_of(script.address) as clients:
        with pytest.raises(ConfigError) as raised:
            await ModelServices.connect(
                clients, run="tests", worker_metrics=metrics.WorkerMetrics(CollectorRegistry())
            )
    message = str(raised.value)
    assert message.startswith("reference.path: got 'models/reference with tokenizer twotwotwotwo'")
    assert "tokenizer oneoneoneone of the policy models/policy" in message


async def test_policy_service_with_a_lower_limit_of_samples_is_refused() -> None:
    script = Script()  # its policy generates up to 4
    worker_metrics = metrics.WorkerMetrics(CollectorRegistry())
    async with serving(script), clients_of(script.address) as clients:
        for samples in (1, 4):
            await ModelServices.connect(
                clients, run="tests", worker_metrics=worker_metrics, num_samples=samples
            )
        with pytest.raises(ConfigError, match=r"^ppo.num_samples: got 5, allowed: at most 4, the limit of"):
            await ModelServices.connect(clients, run="tests", worker_metrics=worker_metrics, num_samples=5)


async def test_waiting_for_services_is_logged_with_their_names(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    script = Script()
    async with serving(script):
        address = script.address
    async with clients_of(address) as clients:
        connecting = asyncio.create_task(
            ModelServices.connect(
                clients, run="tests", worker_metrics=metrics.WorkerMetrics(CollectorRegistry())
            )
        )
        async with asyncio.timeout(10):
            while caplog.text.count("waiting for the") < 3:  # noqa: ASYNC110 - a condition with a deadline
                await asyncio.sleep(0.01)
        for service in ("policy", "reward", "reference"):
            assert f"waiting for the {service} service, 0 s so far: {service} at {address}" in caplog.text
        async with serving(script, address=address):
            assert isinstance(await asyncio.wait_for(connecting, 20), ModelServices)
