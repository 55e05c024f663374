"""GenerateBatch on a real server in process: each request is answered, refused and counted as by Generate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import pytest
from grpc import aio

from fairlead.rpc.call_types import call_type
from fairlead.v1 import policy_service_pb2 as pb
from fairlead.v1 import tokens_pb2
from services.policy.servicer import MAX_BATCH_REQUESTS
from tests.tiny import tiny_causal_lm
from tests.unit.services.policy.service_world import Service, request, sampling, serving, tokens
from tests.unit.services.policy.test_servicer import BAD
from tests.unit.services.runtime.keys_world import Keys

NEWER = tokens_pb2.WeightVersion(incarnation=9)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_causal_lm(tmp_path_factory.mktemp("policy")))


@pytest.fixture
async def service(model_folder: str) -> AsyncIterator[Service]:
    async with serving(model_folder, scanned=True) as service:
        yield service


async def answers(
    service: Service, requests: Sequence[pb.GenerateRequest], **call: object
) -> dict[int, pb.GenerateBatchAnswer]:
    """Return the answers of a call by index; each request has one."""
    found: dict[int, pb.GenerateBatchAnswer] = {}
    async for message in service.stub.GenerateBatch(pb.GenerateBatchRequest(requests=requests), **call):
        assert message.answers
        for answer in message.answers:
            assert answer.index not in found
            found[answer.index] = answer
    assert sorted(found) == list(range(len(requests)))
    return found


def handled(service: Service, method: str, code: str) -> float:
    service_name = "fairlead.v1.PolicyService"
    labels = {
        "grpc_type": call_type(service_name, method),
        "grpc_service": service_name,
        "grpc_method": method,
        "grpc_code": code,
    }
    return service.registry.get_sample_value("grpc_server_handled_total", labels) or 0.0


async def until_idle(service: Service) -> None:
    deadline = time.monotonic() + 60
    while service.engine._thread._request_of or len(service.engine._thread._scheduler):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def test_each_request_is_answered_as_by_generate_though_others_are_invalid(service: Service) -> None:
    good = [
        request(sampling=sampling(seed=seed, max_new_tokens=3 + seed), num_samples=1 + seed % 2)
        for seed in range(6)
    ]
    invalid = [
        *BAD.values(),
        (
            request(alone=True),
            "alone: got True, allowed: false in GenerateBatch: an exclusive request is sent to Generate",
        ),
        (
            request(timeout_seconds=float("nan")),
            "timeout_seconds: got nan, allowed: 0 (no deadline of its own) or more",
        ),
    ]
    invalid = [(bad, message) for bad, message in invalid if bad.ByteSize() < 1_000]
    mixed: list[pb.GenerateRequest] = []
    for index, (bad, _) in enumerate(invalid):
        mixed += [bad, good[index]] if index < len(good) else [bad]
    found = await answers(service, mixed, timeout=60)
    messages = [message for _, message in invalid]
    for index, asked in enumerate(mixed):
        if any(asked is one for one in good):
            # Logits are summed in another order beside other sequences.
            single = await service.stub.Generate(asked)
            same = [[c.text for c in each.completions] for each in (found[index].response, single)]
            assert same[0] == same[1]
            assert len(same[0]) == asked.num_samples
        else:
            error = found[index].error
            assert (error.code, error.message) == (3, messages.pop(0))
            assert (error.retry_after_seconds, error.replica_lost) == (0, False)
    assert messages == []
    assert handled(service, "GenerateBatch", "OK") == 1
    assert handled(service, "Generate", "INVALID_ARGUMENT") == len(invalid)
    assert handled(service, "Generate", "OK") == 2 * len(good)


async def test_too_many_requests_or_numbers_are_refused_before_the_work(service: Service) -> None:
    many = request(tokens=tokens(*[1] * 5_000))
    for requests, message in (
        ([], f"requests: got 0, allowed: from 1 to {MAX_BATCH_REQUESTS}"),
        ([request()] * (MAX_BATCH_REQUESTS + 1), "requests: got 'more than 64 entries', allowed: at most 64"),
        ([request(), many], "requests.tokens.token_ids[1]: got 'more than 4352 numbers'"),
    ):
        with pytest.raises(aio.AioRpcError) as refused:
            await service.stub.GenerateBatch(pb.GenerateBatchRequest(requests=requests)).read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details().startswith(message)
    assert handled(service, "Generate", "OK") == 0
    # The limit of one request holds for each, not for all of them together.
    long = request(tokens=tokens(*[1] * 60), sampling=sampling(max_new_tokens=1, stop_token_ids=[5] * 100))
    found = await answers(service, [long] * MAX_BATCH_REQUESTS)
    assert {answer.response.completions[0].finish_reason for answer in found.values()} <= {1, 2}


async def test_slow_request_delays_no_other_and_has_its_own_deadline(service: Service) -> None:
    waits = request(min_version=NEWER)
    soon = request(min_version=NEWER, timeout_seconds=0.5)
    asked = pb.GenerateBatchRequest(requests=[waits, request(), soon, request()])
    call = service.stub.GenerateBatch(asked, timeout=60)
    found: list[pb.GenerateBatchAnswer] = []
    while len(found) < 3:
        found += (await call.read()).answers
    *ready, late = found
    assert sorted(answer.index for answer in ready) == [1, 3]
    assert late.index == 2
    assert (late.error.code, late.error.message) == (
        grpc.StatusCode.FAILED_PRECONDITION.value[0],
        "the request needs weights 9-0 or newer; 1-3 are in use",
    )
    # Cancelling the call cancels what has not finished.
    async with asyncio.timeout(60):
        while len(service.engine._thread._scheduler) > 1:  # noqa: ASYNC110 - a condition with a deadline
            await asyncio.sleep(0.005)
    assert len(service.engine._thread._scheduler) == 1
    call.cancel()
    await until_idle(service)
    async with asyncio.timeout(60):
        while handled(service, "Generate", "CANCELLED") != 1:  # noqa: ASYNC110 - a condition with a deadline
            await asyncio.sleep(0.005)
    assert (await service.stub.Generate(request())).completions


async def test_limits_of_a_key_hold_for_each_request(model_folder: str, tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    a = keys.add("a", scopes=("generate",), max_in_flight=3)
    b = keys.add("b", scopes=("generate",), requests_per_second=2)
    parallel = [("authorization", f"Bearer {a}")]
    slow = [("authorization", f"Bearer {b}"), ("x-max-request-tokens", "20")]
    async with serving(model_folder, keys=keys.section) as service:
        found = await answers(
            service, [request(min_version=NEWER, timeout_seconds=1)] * 5, timeout=60, metadata=parallel
        )
        errors = [found[index].error for index in range(5)]
        refused = [error for error in errors if error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]]
        assert len(refused) == 2
        assert refused[0].message.startswith("the API key a has reached its limit of 3 requests in flight")
        assert refused[0].retry_after_seconds == 0.1
        large = request(sampling=sampling(max_new_tokens=40))
        found = await answers(service, [large, request(), request()], timeout=60, metadata=slow)
        assert found[0].error.message == "request: got '43 tokens', allowed: at most 20 in one request"
        assert found[1].response.completions
        assert found[2].error.message.startswith("the API key b exceeds its rate of 2 requests per second")
        assert 0 < found[2].error.retry_after_seconds <= 0.5
        # All of them have left.
        found = await answers(service, [request()] * 3, timeout=60, metadata=parallel)
        assert all(answer.response.completions for answer in found.values())
        without = service.stub.GenerateBatch(pb.GenerateBatchRequest(requests=[request()]))
        with pytest.raises(aio.AioRpcError) as refusal:
            await without.read()
        assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
