"""The edge of a gRPC service: API keys of callers, access log, request ids and metadata."""

from __future__ import annotations

import logging
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fairlead.clients import AsyncRewardClient, RewardClient
from fairlead.config.infrastructure import ObserveSection
from fairlead.errors import ConfigError, InvalidInput
from fairlead.v1 import reward_service_pb2 as pb
from tests.unit.fairlead.rpc.tls_world import Authority
from tests.unit.services.reward.reward_world import Threaded, World, reward_service
from tests.unit.services.runtime.access_world import TEN_TOKENS, client, refusal, request, stub_of
from tests.unit.services.runtime.keys_world import Keys
from tests.waiting import until

NAME = "fairlead.v1.RewardService"


@pytest.fixture
async def world(reward_folder, keys: Keys):
    async with reward_service(reward_folder, keys=keys.section) as world:
        yield world


async def test_health_and_reflection_are_open(world: World):
    async with aio.insecure_channel(world.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=""), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        async for listed in stub.ServerReflectionInfo(iter([asked]), timeout=30):
            assert NAME in [service.name for service in listed.list_services_response.service]


async def test_access_log_has_key_and_tokens_but_no_text(reward_folder, keys: Keys, caplog):
    key = keys.add("search")
    caplog.set_level(logging.INFO)
    observe = ObserveSection(access_log="plain")
    async with reward_service(reward_folder, keys=keys.section, observe=observe) as world:
        async with stub_of(world) as stub:
            asked = pb.ScoreRequest(items=[pb.ScoreItem(text=pb.TextPair(prompt="w1 w2", response="w3"))])
            call = stub.Score(
                asked, metadata=[("authorization", f"Bearer {key}"), ("x-request-id", "abc-1")], timeout=30
            )
            response = await call
            assert dict(await call.trailing_metadata())["x-request-id"] == "abc-1"
        await refusal(world, None)

        def lines() -> list[dict[str, object]]:
            return [vars(record) for record in caplog.records if record.getMessage().startswith("rpc /")]

        # A call is logged after its caller has the answer.
        await until(lambda: len(lines()) == 2)
    first, second = lines()
    assert [(line["code"], line["key"], line["request_id"]) for line in (first, second)] == [
        ("OK", "search", "abc-1"),
        ("UNAUTHENTICATED", "", "mine"),
    ]
    assert first["tokens"] == response.num_tokens[0]
    assert first["seconds"] > 0
    logged = " ".join(str(vars(record)) for record in caplog.records)
    assert "w1 w2" not in logged
    assert key.rpartition("_")[2] not in logged


async def test_texts_are_logged_only_if_enabled(reward_folder, caplog):
    caplog.set_level(logging.INFO)
    async with reward_service(reward_folder, observe=ObserveSection(access_log="texts")) as world:
        async with client(world, "") as reward:
            await reward.score([("w1 w2", "w3")])
    [line] = [vars(record) for record in caplog.records if record.getMessage().startswith("rpc /")]
    assert "w1 w2" in line["request"]
    assert "logs the texts of requests" in caplog.text


async def test_invalid_request_id_is_replaced(world: World, keys: Keys):
    key = keys.add("one")
    async with stub_of(world) as stub:
        seen = set()
        for given in ("", "x" * 200, "two words", None):
            metadata = [("authorization", f"Bearer {key}")] + ([("x-request-id", given)] if given else [])
            call = stub.Score(request(), metadata=metadata, timeout=30)
            await call
            seen.add(dict(await call.trailing_metadata())["x-request-id"])
    assert len(seen) == 4
    assert all(len(one) == 16 for one in seen)


async def test_token_limit_in_metadata_is_enforced(reward_folder):
    async with reward_service(reward_folder) as world, client(world, "") as reward:
        assert len((await reward.score([TEN_TOKENS], max_request_tokens=10)).scores) == 1
        with pytest.raises(InvalidInput, match="got '10 tokens', allowed: at most 9 in one request"):
            await reward.score([TEN_TOKENS], max_request_tokens=9)
        for wrong in (0, -1):
            with pytest.raises(InvalidInput, match=f"x-max-request-tokens: got '{wrong}', allowed: a whole"):
                await reward.score([TEN_TOKENS], max_request_tokens=wrong)


async def test_oversized_metadata_is_refused_and_server_continues(world: World, keys: Keys):
    key = keys.add("one")
    async with stub_of(world) as stub:
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Score(request(), metadata=[("x-large", "x" * 40_000)], timeout=30)
        assert caught.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
        await stub.Score(request(), metadata=[("authorization", f"Bearer {key}")], timeout=30)


def test_key_is_not_sent_to_remote_host_in_plain_text(monkeypatch):
    for address in ("10.0.0.5:5002", "reward:5002", "dns:///reward.ns.svc:5002", "localhost.evil.com:1"):
        with pytest.raises(ConfigError, match="in plain text") as caught:
            AsyncRewardClient(address, api_key="fl_a_secret")
        assert "secret" not in str(caught.value)
        AsyncRewardClient(address, api_key="fl_a_secret", allow_insecure=True)
        AsyncRewardClient(address, api_key="fl_a_secret", tls=True)
        AsyncRewardClient(address)
    for address in ("127.0.0.1:1", "[::1]:1", "localhost:1", "dns:///localhost:1"):
        AsyncRewardClient(address, api_key="fl_a_secret")
    monkeypatch.setenv("FAIRLEAD_API_KEY", "fl_a_secret")
    with pytest.raises(ConfigError, match="in plain text"):
        RewardClient("reward:5002")
    AsyncRewardClient("reward:5002", api_key="")
    with pytest.raises(ConfigError, match="api_key"):
        AsyncRewardClient("localhost:1", api_key="two\nlines")


async def test_key_is_read_from_environment(world: World, keys: Keys, monkeypatch):
    # With a newline, as in a Secret made from a file.
    monkeypatch.setenv("FAIRLEAD_API_KEY", keys.add("worker") + "\n")
    async with client(world, None) as reward:
        assert len((await reward.score([TEN_TOKENS])).scores) == 1


def test_triton_client_sends_key_over_tls(reward_folder, keys: Keys, tmp_path: Path):
    """With the client's own options, as in docs/security.md."""
    from tritonclient.grpc import InferenceServerClient, InferInput
    from tritonclient.utils import InferenceServerException

    authority = Authority(tmp_path)
    headers = {"authorization": f"Bearer {keys.add('triton', max_request_tokens=20)}"}
    sentences = InferInput("sentences", [1, 1], "BYTES")
    sentences.set_data_from_numpy(np.array([[b"w1 w2 w3"]], dtype=object))
    too_long = InferInput("sentences", [1, 1], "BYTES")
    too_long.set_data_from_numpy(np.array([[b"w1 " * 30]], dtype=object))
    with Threaded() as services:
        world = services.serve(reward_service(reward_folder, keys=keys.section, tls=authority.server()))
        asked = InferenceServerClient(world.address, ssl=True, root_certificates=str(authority.ca))
        with asked as client:
            assert client.is_server_ready()
            found = client.infer("reward", [sentences], headers=headers).as_numpy("rewards")
            assert found.shape == (1, 1)
            with pytest.raises(InferenceServerException, match="no API key"):
                client.infer("reward", [sentences])
            with pytest.raises(InferenceServerException, match="no API key"):
                client.get_model_metadata("reward")
            with pytest.raises(InferenceServerException, match="at most 20 in one request"):
                client.infer("reward", [too_long], headers=headers)
