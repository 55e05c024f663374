"""The worker's loop with a queue in memory and real gRPC servers with scripted responses."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config.serving import RolloutWorkerSection
from fairlead.errors import ConfigError, QueueUnavailable, SchemaTooNew
from fairlead.transports.rollouts.base import OutcomeEntry
from fairlead.types import DeadLetter, PromptTask, SamplingParams, TaskResult, WeightVersion
from fairlead.v1 import tokens_pb2
from services.rollout_worker import coalesced_calls
from services.rollout_worker.model_services import ModelServices
from services.rollout_worker.worker import RolloutWorker
from tests.memory_queue import MemoryBroker, MemoryTrainerQueue, MemoryWorkerQueue
from tests.scripted_services import (
    MAX_SEQUENCE_TOKENS,
    VOCABULARY_SIZE,
    Script,
    answer_backwards,
    clients_of,
    completion,
    minus_one,
    model_services_of,
    score_length,
    serving,
)

NAN = float("nan")


def task(
    task_id: int, *, prompt: tuple[int, ...] = (1, 2, 3), temperature: float = 0.5, samples: int = 1
) -> PromptTask:
    sampling = SamplingParams(temperature=temperature, max_new_tokens=8, seed=1000 + task_id)
    return PromptTask(
        task_id, prompt, f"prompt {task_id}", sampling, WeightVersion(1, 3), num_samples=samples
    )


@dataclass
class Bench:
    """A running worker, and both ends of its queue."""

    broker: MemoryBroker
    trainer: MemoryTrainerQueue
    worker: RolloutWorker
    stop: asyncio.Event
    running: asyncio.Task[None]
    registry: CollectorRegistry
    seen: dict[int, OutcomeEntry] = field(default_factory=dict)

    async def outcomes(self, count: int, *, seconds: float = 10) -> dict[int, TaskResult]:
        """Return the outcomes by task, once there are `count`."""
        async with asyncio.timeout(seconds):
            while True:
                entries = self.trainer.read(after="0", count=10_000, block_seconds=0)
                if len(entries) >= count:
                    return {entry.outcome.task.task_id: entry.outcome.result for entry in entries}
                await asyncio.sleep(0.005)

    async def until(self, condition) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - a condition with a deadline
                await asyncio.sleep(0.005)

    def counted(self, result: str) -> float:
        found = self.registry.get_sample_value("fairlead_worker_tasks_total", {"result": result})
        return found or 0.0


@asynccontextmanager
async def bench(
    script: Script,
    *,
    tasks: list[PromptTask],
    in_flight: int = 8,
    lease: float = 0.3,
    drain: float = 5.0,
    timeout: float = 10.0,
    queue: type[MemoryWorkerQueue] = MemoryWorkerQueue,
) -> AsyncIterator[Bench]:
    broker = MemoryBroker(lease_seconds=lease)
    trainer = broker.trainer()
    trainer.take_fence(1)
    trainer.dispatch(tasks)
    registry = CollectorRegistry()
    worker_metrics = metrics.WorkerMetrics(registry)
    async with model_services_of(script, worker_metrics=worker_metrics, timeout_seconds=timeout) as services:
        section = RolloutWorkerSection(max_in_flight=in_flight, drain_seconds=drain)
        worker = RolloutWorker(
            queue=queue(broker, "w"),
            answer=services.answer,
            section=section,
            lease_seconds=lease,
            metrics=worker_metrics,
            num_samples=tasks[0].num_samples,
        )
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        try:
            yield Bench(broker, trainer, worker, stop, running, registry)
        finally:
            stop.set()
            await asyncio.gather(running, return_exceptions=True)


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


async def test_leases_are_renewed_during_a_task() -> None:
    slow = asyncio.Event()

    async def generate(request, context):
        await slow.wait()
        return await answer_backwards(request, context)

    script = Script(generate=generate)
    # Long enough for the pauses of a busy machine between two renewals.
    async with bench(script, tasks=[task(0)], lease=2.0) as b:
        await b.until(lambda: script.requests)
        other = b.broker.worker("other")
        assert list(await other.claim(count=1, block_seconds=4.0)) == []
        slow.set()
        await b.outcomes(1)
    assert len(script.requests) == 1


async def test_task_whose_lease_was_lost_is_cancelled() -> None:
    ended = asyncio.Event()

    async def generate(request, context):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            raise

    script = Script(generate=generate)
    async with bench(script, tasks=[task(0)], lease=0.15) as b:
        await b.until(lambda: script.requests)
        script.generate = answer_backwards
        b.trainer.dispatch([task(0)])
        await asyncio.wait_for(ended.wait(), 10)
        await b.until(lambda: b.counted("lost") == 1)
        await b.outcomes(1)
        [entry] = b.trainer.read(after="0", count=5, block_seconds=0)
    assert entry.sending.number == 2


async def test_drain_finishes_tasks_and_releases_the_rest() -> None:
    hold = asyncio.Event()

    async def generate(request, context):
        await (hold if request.request_id == "tests-0" else asyncio.Event()).wait()
        return await answer_backwards(request, context)

    script = Script(generate=generate)
    async with bench(script, tasks=[task(0), task(1), task(2)], in_flight=2, lease=60, drain=0.3) as b:
        await b.until(lambda: len(script.requests) == 2)
        b.stop.set()
        hold.set()
        await asyncio.wait_for(b.running, 10)
        outcomes = await b.outcomes(1)
        assert list(outcomes) == [0]
        other = b.broker.worker("other")
        claims = await other.claim(count=5, block_seconds=0)
        assert [(claim.task.task_id, claim.deliveries) for claim in claims] == [(1, 1), (2, 1)]
        assert b.counted("released") == 1


class FlakyQueue(MemoryWorkerQueue):
    """A queue in memory that can be made unavailable."""

    cut = False
    refuses: Exception | None = None

    async def claim(self, **arguments):
        self._check()
        return await super().claim(**arguments)

    async def renew(self, claims):
        self._check()
        return await super().renew(claims)

    async def finish(self, claim, result):
        self._check()
        return await super().finish(claim, result)

    def _check(self) -> None:
        if self.refuses is not None:
            raise self.refuses
        if self.cut:
            raise QueueUnavailable("Redis at 127.0.0.1:1 does not answer")


async def test_results_stay_in_memory_while_the_queue_is_unavailable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hold = asyncio.Event()

    async def generate(request, context):
        await hold.wait()
        return await answer_backwards(request, context)

    script = Script(generate=generate)
    caplog.set_level(logging.INFO)
    async with bench(script, tasks=[task(i) for i in range(3)], queue=FlakyQueue) as b:
        await b.until(lambda: len(script.requests) == 3)
        b.worker.queue.cut = True  # type: ignore[attr-defined]
        hold.set()
        await b.until(lambda: not b.worker.ready)
        assert b.trainer.read(after="0", count=5, block_seconds=0) == []
        b.worker.queue.cut = False  # type: ignore[attr-defined]
        assert len(await b.outcomes(3)) == 3
        await b.until(lambda: b.worker.ready)
    assert len(script.requests) == 3
    assert "the queue answers again" in caplog.text


async def test_prompt_of_a_newer_schema_ends_the_worker_after_a_drain() -> None:
    hold = asyncio.Event()

    async def generate(request, context):
        await hold.wait()
        return await answer_backwards(request, context)

    script = Script(generate=generate)
    async with bench(script, tasks=[task(0)], in_flight=2, queue=FlakyQueue) as b:
        await b.until(lambda: script.requests)
        b.worker.queue.refuses = SchemaTooNew("prompt task has schema version 2")  # type: ignore[attr-defined]
        await b.until(b.stop.is_set)
        b.worker.queue.refuses = None  # type: ignore[attr-defined]
        hold.set()
        with pytest.raises(SchemaTooNew):
            await asyncio.wait_for(b.running, 10)
        assert len(await b.outcomes(1)) == 1


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
