"""Requests that share a GenerateBatch call to real servers: errors, deaths, cancellations, old services."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import grpc
import pytest

from fairlead.clients import AsyncPolicyClient, generate_batches
from fairlead.errors import (
    CorruptData,
    FairleadError,
    InternalError,
    InvalidInput,
    Overloaded,
    ReplicaLost,
    StaleWeights,
    Unavailable,
)
from fairlead.rpc.retry import RetryPolicy
from fairlead.types import SamplingParams
from fairlead.v1 import policy_service_pb2 as pb
from fairlead.v1 import policy_service_pb2_grpc as pb_grpc
from fairlead.v1 import tokens_pb2
from tests.unit.fairlead.rpc.rpc_world import serving

SAMPLING = SamplingParams(max_new_tokens=4)
ONCE = RetryPolicy(max_attempts=1)
FOREVER = 10_000
"""A prompt that is answered only when `Policy.release` is set."""


class Policy(pb_grpc.PolicyServiceServicer):
    """Answers with the prompt; `answer` may raise an error, or return one for GenerateBatch."""

    def __init__(
        self, answer: Callable[[int], Awaitable[pb.GenerateBatchError | None]] | None = None
    ) -> None:
        self.answer = answer
        self.batches: list[list[int]] = []
        self.singles: list[int] = []
        self.ended = asyncio.Event()
        self.release = asyncio.Event()

    async def Generate(self, request, context):
        self.singles.append(request.tokens.token_ids[0])
        return respond(request)

    async def GenerateBatch(self, request, context) -> AsyncIterator[pb.GenerateBatchResponse]:
        self.batches.append([each.tokens.token_ids[0] for each in request.requests])
        waits = []
        try:
            for index, each in enumerate(request.requests):
                answer = pb.GenerateBatchAnswer(index=index, response=respond(each))
                if each.tokens.token_ids[0] == FOREVER:
                    waits.append(answer)
                    continue
                error = await self.answer(each.tokens.token_ids[0]) if self.answer else None
                if error is not None:
                    answer = pb.GenerateBatchAnswer(index=index, error=error)
                yield pb.GenerateBatchResponse(answers=[answer])
            if waits:
                await self.release.wait()
                yield pb.GenerateBatchResponse(answers=waits)
        finally:
            self.ended.set()


def respond(request: pb.GenerateRequest) -> pb.GenerateResponse:
    completion = tokens_pb2.Completion(
        token_ids=request.tokens.token_ids,
        logprobs=[-1.0] * len(request.tokens.token_ids),
        finish_reason=tokens_pb2.FINISH_REASON_STOP,
    )
    return pb.GenerateResponse(completions=[completion], prompt_tokens=1)


class World:
    """Served policies and a client of all of them."""

    def __init__(self, client: AsyncPolicyClient) -> None:
        self.client = client

    async def ask(self, prompt: int, **options: object) -> int:
        found = await self.client.generate([prompt], SAMPLING, batched=True, fatal_to_replica=True, **options)  # type: ignore[arg-type]
        return found[0].token_ids[0]

    async def ask_all(self, *prompts: int) -> list[int | BaseException]:
        return await asyncio.gather(*map(self.ask, prompts), return_exceptions=True)


@pytest.fixture
async def world() -> AsyncIterator[Callable[..., Awaitable[World]]]:
    async with AsyncExitStack() as stack:

        async def start(*policies: Policy, **options: object) -> World:
            add = pb_grpc.add_PolicyServiceServicer_to_server
            addresses = [await stack.enter_async_context(serving(policy, add=add)) for policy in policies]
            client = AsyncPolicyClient(addresses, **{"retry": ONCE, "timeout_seconds": 60, **options})  # type: ignore[arg-type]
            return World(await stack.enter_async_context(client))

        yield start


async def test_requests_that_begin_together_share_a_call_and_fail_by_themselves(world) -> None:
    errors = {
        1: pb.GenerateBatchError(code=3, message="prompt: got '9', allowed: 8"),
        2: pb.GenerateBatchError(code=8, message="the queue is full", retry_after_seconds=7.0),
        3: pb.GenerateBatchError(code=9, message="old weights"),
        4: pb.GenerateBatchError(code=13, message="a bug (a1b2 in the server's log)"),
        # Only a message: the replica lives and has answered.
        5: pb.GenerateBatchError(code=14, message="Socket closed"),
        6: pb.GenerateBatchError(code=14, message="a rank died", replica_lost=True),
    }

    async def answer(prompt: int) -> pb.GenerateBatchError | None:
        return errors.get(prompt)

    policy = Policy(answer)
    w = await world(policy)
    found = await w.ask_all(*range(8))
    assert policy.batches == [list(range(8))]
    kinds = [InvalidInput, Overloaded, StaleWeights, InternalError, FairleadError, ReplicaLost]
    assert (found[0], found[7]) == (0, 7)
    for error, kind in zip(found[1:7], kinds, strict=True):
        assert isinstance(error, kind), error
    assert isinstance(found[2], Overloaded)
    assert found[2].retry_after_seconds == 7.0
    assert not isinstance(found[5], ReplicaLost)
    # An exclusive request, and one that begins at another time, are Generate calls.
    await asyncio.gather(w.ask(1), w.ask(2, exclusive=True))
    assert sorted(policy.singles) == [1, 2]
    assert len(policy.batches) == 1


async def test_request_that_fails_is_retried_by_itself_on_another_replica(world) -> None:
    async def answer(prompt: int) -> pb.GenerateBatchError | None:
        stale = pb.GenerateBatchError(code=9, message="old weights")
        return stale if prompt % 4 == 0 else None

    policies = Policy(answer), Policy()
    w = await world(*policies, retry=RetryPolicy(initial_backoff_seconds=0.01, max_attempts=9))
    while not all(policy.singles for policy in policies):
        await w.client.generate([1], SAMPLING)
    assert await w.ask_all(*range(200)) == list(range(200))
    shares = [sum(map(len, policy.batches)) for policy in policies]
    assert min(shares) >= 80, "balanced, request by request"
    assert max(len(batch) for policy in policies for batch in policy.batches) <= generate_batches.MAX_REQUESTS


async def test_slow_request_delays_no_other_and_cancelled_ones_disturb_none(world) -> None:
    policy = Policy()
    w = await world(policy)
    slow, cancelled = (asyncio.create_task(w.ask(FOREVER)) for _ in range(2))
    assert await w.ask_all(1, 2) == [1, 2]
    assert policy.batches == [[FOREVER, FOREVER, 1, 2]]
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert not policy.ended.is_set()
    policy.release.set()
    assert await slow == FOREVER
    # The call ends when nobody waits for it any longer.
    policy.release.clear()
    policy.ended.clear()
    tasks = [asyncio.create_task(w.ask(prompt)) for prompt in (FOREVER, FOREVER, 1)]
    assert await tasks.pop() == 1
    for task in tasks:
        task.cancel()
    await asyncio.wait_for(policy.ended.wait(), 20)


async def test_each_request_has_its_own_deadline(world) -> None:
    policy = Policy()
    w = await world(policy)
    late = asyncio.create_task(w.ask(FOREVER))
    found = await asyncio.gather(w.ask(FOREVER, timeout_seconds=0.3), w.ask(1), return_exceptions=True)
    assert str(found[0]).startswith("policy at 127.0.0.1")
    assert "DEADLINE_EXCEEDED" in str(found[0])
    assert found[1] == 1
    policy.release.set()
    assert await late == FOREVER


async def test_request_that_a_call_is_refused_for_is_found_by_single_calls(world) -> None:
    async def answer(prompt: int) -> None:
        if prompt == 3:
            raise InvalidInput("requests.stop_strings", index=0, got="99", allowed="8")

    policy = Policy(answer)
    assert await (await world(policy)).ask_all(*range(6)) == list(range(6))
    assert policy.singles == [3, 4, 5]


async def test_stream_that_ends_early_and_a_closed_connection_fail_all_requests(world) -> None:
    class Short(Policy):
        async def GenerateBatch(self, request, context):
            yield pb.GenerateBatchResponse(
                answers=[pb.GenerateBatchAnswer(index=1, response=respond(request.requests[1]))]
            )

    w = await world(Short())
    found = await w.ask_all(1, 2, 3)
    assert found[1] == 2
    assert [type(error) for error in (found[0], found[2])] == [CorruptData, CorruptData]
    tasks = [asyncio.create_task(w.ask(prompt)) for prompt in (1, 2)]
    await asyncio.sleep(0)
    await w.client._replicas._replicas[0].channel.close()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [Unavailable, Unavailable]


async def test_old_services_get_single_calls_and_the_log_says_so_once(
    world, caplog: pytest.LogCaptureFixture
) -> None:
    class Old(Policy):
        async def GenerateBatch(self, request, context):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            yield pb.GenerateBatchResponse()

    old = Old()
    w = await world(old)
    with caplog.at_level(logging.INFO, logger="fairlead.clients.policy"):
        for _ in range(3):
            assert await w.ask_all(*range(40)) == list(range(40))
    assert sorted(old.singles) == sorted([*range(40)] * 3)
    assert [record.message for record in caplog.records] == [
        "a policy service has no GenerateBatch (an older version): every prompt has its own call"
    ]
    mixed = await world(Old(), Policy())
    assert await mixed.ask_all(*range(40)) == list(range(40))


_SERVER = """
import asyncio
from grpc import aio
from fairlead.v1 import policy_service_pb2_grpc as pb_grpc
from tests.unit.fairlead.clients.test_generate_batches import Policy

async def main():
    server = aio.server()
    pb_grpc.add_PolicyServiceServicer_to_server(Policy(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


async def test_death_of_a_replica_fails_what_it_has_not_answered() -> None:
    with subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
        try:
            assert process.stdout is not None
            port = await asyncio.to_thread(process.stdout.readline)
            async with AsyncPolicyClient(f"127.0.0.1:{port.strip()}", retry=ONCE) as client:
                w = World(client)
                assert await w.ask(9) == 9
                lost = [asyncio.create_task(w.ask(FOREVER)) for _ in range(2)]
                assert await w.ask_all(0, 1, 2) == [0, 1, 2]
                process.kill()
                errors = await asyncio.gather(*lost, return_exceptions=True)
        finally:
            process.kill()
    assert [type(error) for error in errors] == [ReplicaLost, ReplicaLost]
