"""The policy service on a real server in process: completions, and the exact error of invalid requests."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc import aio

from fairlead.data.encoding import encode_prompt
from fairlead.nn.loading import tokenizer_fingerprint
from fairlead.types import WeightVersion
from fairlead.v1 import policy_service_pb2 as pb
from fairlead.v1 import tokens_pb2
from tests.metric_values import total
from tests.tiny import VOCABULARY_SIZE, tiny_causal_lm
from tests.unit.services.policy.service_world import (
    CONTEXT,
    Service,
    request,
    sampling,
    serving,
    talk,
    tokens,
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_causal_lm(tmp_path_factory.mktemp("policy")))


@pytest.fixture
async def service(model_folder: str) -> AsyncIterator[Service]:
    async with serving(model_folder) as service:
        yield service


BAD: dict[str, tuple[pb.GenerateRequest, str]] = {
    "no prompt": (
        pb.GenerateRequest(sampling=sampling(), num_samples=1),
        "prompt: got 'nothing', allowed: tokens, text or a conversation",
    ),
    "no sampling": (
        pb.GenerateRequest(tokens=tokens(1), num_samples=1),
        "sampling: got 'nothing', allowed: sampling parameters",
    ),
    "empty ids": (request(tokens=tokens()), "tokens.token_ids: got 'no token ids', allowed: at least one"),
    "empty text": (request(text=""), "text: got '', allowed: a non-empty text"),
    "beyond the context": (
        request(tokens=tokens(*[4] * CONTEXT)),
        "prompt: got '64 tokens', allowed: at most 63 tokens, to leave one for the completion",
    ),
    "text beyond the context": (
        request(text="w1 " * CONTEXT),
        "prompt: got '65 tokens', allowed: at most 63 tokens, to leave one for the completion",
    ),
    "id beyond the vocabulary": (
        request(tokens=tokens(1, VOCABULARY_SIZE)),
        "tokens.token_ids: got '60 at position 1', allowed: ids from 0 to 59",
    ),
    "negative id": (
        request(tokens=tokens(-1)),
        "tokens.token_ids: got '-1 at position 0', allowed: ids from 0 to 59",
    ),
    "5 MB text": (
        request(text="x" * 5_000_000),
        "text: got '5000000 bytes', allowed: at most 1048576 bytes of UTF-8",
    ),
    "no turns": (
        request(conversation=talk()),
        "conversation.messages: got '0 turns', allowed: from 1 to 4096",
    ),
    "unknown role": (
        request(conversation=talk(("user", "w1"), ("tool", "w2"))),
        "conversation.messages[1]: got \"role 'tool'\", allowed: one of system, user, assistant",
    ),
    "the assistant last": (
        request(conversation=talk(("user", "w1"), ("assistant", "w2"))),
        "conversation.messages[1]: got 'a turn of the assistant', allowed: a last turn of another role",
    ),
    "5 MB of turns": (
        request(conversation=talk(*[("user", "x" * 1_000_000)] * 5)),
        "conversation.messages: got '5000000 bytes', allowed: at most 1048576 bytes of UTF-8",
    ),
    "turns without a template": (
        request(conversation=talk(("system", "w1"), ("user", "w2"))),
        "conversation.messages: got 'turns of system, user', allowed: one non-empty turn of the user: "
        "this policy has no chat template",
    ),
    "n = 0": (request(num_samples=0), "num_samples: got 0, allowed: from 1 to 8"),
    "n = -1": (request(num_samples=-1), "num_samples: got -1, allowed: from 1 to 8"),
    "n = 10**6": (request(num_samples=10**6), "num_samples: got 1000000, allowed: from 1 to 8"),
    "temperature NaN": (
        request(sampling=sampling(temperature=math.nan)),
        "sampling.temperature: got nan, allowed: a finite number from 0 to 100",
    ),
    "temperature -1": (
        request(sampling=sampling(temperature=-1)),
        "sampling.temperature: got -1.0, allowed: a finite number from 0 to 100",
    ),
    "temperature inf": (
        request(sampling=sampling(temperature=math.inf)),
        "sampling.temperature: got inf, allowed: a finite number from 0 to 100",
    ),
    "top_p 0": (
        request(sampling=sampling(top_p=0)),
        "sampling.top_p: got 0.0, allowed: greater than 0, at most 1",
    ),
    "top_p 1.5": (
        request(sampling=sampling(top_p=1.5)),
        "sampling.top_p: got 1.5, allowed: greater than 0, at most 1",
    ),
    "top_p NaN": (
        request(sampling=sampling(top_p=math.nan)),
        "sampling.top_p: got nan, allowed: greater than 0, at most 1",
    ),
    "top_k -1": (
        request(sampling=sampling(top_k=-1)),
        "sampling.top_k: got -1, allowed: 0 (all tokens) or more",
    ),
    "no new tokens": (
        request(sampling=sampling(max_new_tokens=0)),
        "sampling.max_new_tokens: got 0, allowed: 1 or more",
    ),
    "stop id beyond the vocabulary": (
        request(sampling=sampling(stop_token_ids=[2, 99])),
        "sampling.stop_token_ids: got '99 at position 1', allowed: ids from 0 to 59",
    ),
    "too many stop ids": (
        request(sampling=sampling(stop_token_ids=[2] * 2_000)),
        "sampling.stop_token_ids: got '2000 entries', allowed: at most 1024",
    ),
    "too many stop strings": (
        request(sampling=sampling(stop_strings=["x"] * 17)),
        "sampling.stop_strings: got '17 entries', allowed: at most 16",
    ),
    "empty stop string": (
        request(sampling=sampling(stop_strings=["x", ""])),
        "sampling.stop_strings[1]: got '', allowed: a non-empty text",
    ),
    "long stop string": (
        request(sampling=sampling(stop_strings=["x" * 2_000])),
        "sampling.stop_strings[0]: got '2000 bytes', allowed: at most 1024 bytes of UTF-8",
    ),
    "negative version": (
        request(min_version=tokens_pb2.WeightVersion(incarnation=-1)),
        "min_version: got '-1-0', allowed: an incarnation and an update of 0 or more",
    ),
    "long request id": (
        request(request_id="x" * 300),
        "request_id: got '300 bytes', allowed: at most 256 bytes of UTF-8",
    ),
}


async def test_invalid_request_gets_exact_error_and_no_work(service: Service) -> None:
    for name, (bad, message) in BAD.items():
        with pytest.raises(aio.AioRpcError) as refused:
            await service.stub.Generate(bad)
        assert (refused.value.code(), refused.value.details()) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            message,
        ), name
        with pytest.raises(aio.AioRpcError) as refused:
            await service.stub.GenerateStream(pb.GenerateStreamRequest(request=bad)).read()
        assert refused.value.details() == message, name
    assert service.registry.get_sample_value("fairlead_policy_tokens_total") == 0
    assert service.wanted == []


async def test_text_and_ids_of_a_prompt_give_the_same_completion(service: Service) -> None:
    by_text = await service.stub.Generate(request(text="w1 w2", num_samples=2, sampling=sampling(seed=4)))
    ids = encode_prompt(service.tokenizer, "w1 w2")
    by_ids = await service.stub.Generate(
        request(tokens=tokens(*ids), num_samples=2, sampling=sampling(seed=4))
    )
    assert by_text == by_ids
    assert by_text.prompt_tokens == 3
    # Two requests of two answers; an invalid one reads no prompt.
    assert total(service.registry, "fairlead_policy_prompt_tokens_total") == 2 * 3
    assert total(service.registry, "fairlead_policy_first_token_seconds_count") == 2
    assert total(service.registry, "fairlead_policy_finished_total") == 2 * 2
    assert total(service.registry, "fairlead_policy_slots") > 0
    assert total(service.registry, "fairlead_policy_cache_bytes") > 0
    for completion in by_text.completions:
        assert len(completion.token_ids) == len(completion.logprobs) >= 1
        span = completion.version_spans[0]
        assert (span.version.incarnation, span.version.update) == (1, 3)
        assert (span.start, span.end) == (0, len(completion.token_ids))
        assert completion.text == service.tokenizer.decode(completion.token_ids, skip_special_tokens=True)


async def test_completion_ends_at_the_context(service: Service) -> None:
    wanted = request(
        tokens=tokens(*[5] * (CONTEXT - 1)), sampling=sampling(max_new_tokens=1_000, temperature=0)
    )
    answer = await service.stub.Generate(wanted)
    assert len(answer.completions[0].token_ids) == 1
    long = request(tokens=tokens(5), sampling=sampling(max_new_tokens=2**31 - 1, seed=1), num_samples=8)
    for completion in (await service.stub.Generate(long)).completions:
        ended = completion.token_ids[-1] == service.tokenizer.eos_token_id
        assert ended or len(completion.token_ids) == CONTEXT - 1
        stop, length = tokens_pb2.FINISH_REASON_STOP, tokens_pb2.FINISH_REASON_LENGTH
        assert completion.finish_reason == (stop if ended else length)


async def test_stream_ends_with_finish_reason(service: Service) -> None:
    wanted = request(sampling=sampling(seed=2), num_samples=3)
    whole = (await service.stub.Generate(wanted)).completions
    parts: list[list[tokens_pb2.Completion]] = [[], [], []]
    async for response in service.stub.GenerateStream(pb.GenerateStreamRequest(request=wanted)):
        parts[response.sample_index].append(response.delta)
    for completion, deltas in zip(whole, parts, strict=True):
        assert [token for delta in deltas for token in delta.token_ids] == list(completion.token_ids)
        assert "".join(delta.text for delta in deltas) == completion.text
        assert {delta.finish_reason for delta in deltas[:-1]} <= {tokens_pb2.FINISH_REASON_UNSPECIFIED}
        assert deltas[-1].finish_reason == completion.finish_reason


async def test_info_describes_the_served_model(service: Service) -> None:
    info = await service.stub.GetPolicyInfo(pb.GetPolicyInfoRequest())
    assert info.model.tokenizer_fingerprint == tokenizer_fingerprint(service.tokenizer)
    assert (info.model.vocabulary_size, info.model.max_sequence_tokens) == (VOCABULARY_SIZE, CONTEXT)
    assert (info.weight_version.incarnation, info.weight_version.update) == (1, 3)
    assert (info.max_slots, info.max_samples, info.model.dtype) == (4, 8, "float32")


async def test_request_for_newer_weights_is_refused_before_its_deadline(service: Service) -> None:
    newer = tokens_pb2.WeightVersion(incarnation=1, update=4)
    with pytest.raises(aio.AioRpcError) as refused:
        await service.stub.Generate(request(min_version=newer), timeout=4)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert refused.value.details() == "the request needs weights 1-4 or newer; 1-3 are in use"
    assert service.wanted == [WeightVersion(1, 4)]
    held = tokens_pb2.WeightVersion(incarnation=1, update=3)
    assert (await service.stub.Generate(request(min_version=held))).completions
    assert service.wanted == [WeightVersion(1, 4)]


async def test_cancelled_calls_free_their_slots(service: Service) -> None:
    long = request(sampling=sampling(max_new_tokens=1_000), num_samples=8)
    calls = [service.stub.Generate(long) for _ in range(50)]
    stream = service.stub.GenerateStream(pb.GenerateStreamRequest(request=long))
    await stream.read()
    for call in (*calls, stream):
        call.cancel()
    deadline = time.monotonic() + 20
    while service.engine._thread._request_of or len(service.engine._thread._scheduler):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
    assert (await service.stub.Generate(request())).completions
