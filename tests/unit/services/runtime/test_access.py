"""Access control of a gRPC service with a real reward model: every refusal, its error and its metrics."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from fairlead.errors import InvalidInput, PermissionDenied, Unauthenticated
from fairlead.rpc import api_keys
from fairlead.rpc.api_keys import ApiKey
from fairlead.types import Priority, Scores, TokenPair
from fairlead.v1 import (
    policy_service_pb2,
    reference_service_pb2,
    reward_admin_service_pb2,
    weight_service_pb2,
)
from fairlead.v1 import reward_service_pb2 as pb
from services.runtime.access.control import Caller, scope_of
from tests.unit.services.reward.reward_world import World, reward_service
from tests.unit.services.runtime.access_world import TEN_TOKENS, client, refusal, refusals, scored
from tests.unit.services.runtime.keys_world import Keys
from tests.waiting import until


@pytest.fixture
async def world(reward_folder, keys: Keys):
    async with reward_service(reward_folder, keys=keys.section) as world:
        yield world


async def test_refusals_have_status_metric_and_no_secrets(world: World, keys: Keys):
    good = keys.add("good")
    past = datetime.now(UTC) - timedelta(days=1)
    cases = {
        "missing": (None, "UNAUTHENTICATED", "no API key"),
        "wrong": (f"{good[:-1]}{'0' if good[-1] != '0' else '1'}", "UNAUTHENTICATED", "unknown API key"),
        "revoked": (keys.add("gone", revoked=True), "UNAUTHENTICATED", "the API key gone is revoked"),
        "expired": (keys.add("late", expires=past), "UNAUTHENTICATED", "the API key late has expired"),
        "scope": (
            keys.add("writer", scopes=("generate", "feedback")),
            "PERMISSION_DENIED",
            "the API key writer does not have the scope score",
        ),
        "request_tokens": (
            keys.add("small", max_request_tokens=9),
            "INVALID_ARGUMENT",
            "at most 9 in one request",
        ),
    }
    before = scored(world)
    for reason, (key, code, words) in cases.items():
        error = await refusal(world, key)
        assert (error.code().name, refusals(world, reason)) == (code, 1), reason
        assert words in error.details()
        # No key, no hash, no path and no traceback leaves the process.
        details = error.details()
        assert str(keys.path) not in details
        assert "Traceback" not in details
        assert key is None or key.rpartition("_")[2] not in details
        assert all(entry.sha256 not in details for entry in keys.file.keys)
    # None of the refused requests was computed.
    assert scored(world) == before
    async with client(world, good) as reward:
        assert len((await reward.score([TEN_TOKENS])).scores) == 1
    assert scored(world) == before + 1


async def test_client_raises_matching_errors(world: World, keys: Keys):
    writer = keys.add("writer", scopes=("generate",))
    for key, kind in ((api_keys.draw("nobody"), Unauthenticated), (writer, PermissionDenied)):
        async with client(world, key) as reward:
            with pytest.raises(kind):
                await reward.score([TEN_TOKENS])


async def test_exclusive_request_needs_scope_generate(world: World, keys: Keys):
    async with client(world, keys.add("caller")) as reward:
        with pytest.raises(PermissionDenied, match="caller does not have the scope generate"):
            await reward.score([TEN_TOKENS], exclusive=True)
    async with client(world, keys.add("worker", scopes=("score", "generate"))) as reward:
        assert len((await reward.score([TEN_TOKENS], exclusive=True)).scores) == 1


async def test_key_over_its_rate_gets_retry_delay(world: World, keys: Keys):
    slow = keys.add("slow", requests_per_second=0.5)
    async with client(world, slow) as reward:
        await reward.score([TEN_TOKENS])
    error = await refusal(world, slow)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    pushback = int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])
    assert 1000 < pushback <= 2000
    assert refusals(world, "requests") == 1
    # A client whose deadline allows it waits for the delay that the server asked for.
    began = asyncio.get_running_loop().time()
    async with client(world, keys.add("brisk", requests_per_second=5)) as reward:
        for _ in range(7):
            await reward.score([TEN_TOKENS])
    assert asyncio.get_running_loop().time() - began > 0.35


async def test_counted_tokens_are_those_of_the_request(world: World, keys: Keys):
    limited = keys.add("limited", tokens_per_day=100)
    async with client(world, limited) as reward:
        # Text counts as tokens of the service's tokenizer, including its end token.
        found = await reward.score([("w1 w2 w3", "w4 w5"), ("w1", "w2")])
        used = sum(found.num_tokens)
        assert used == len(["w1", "w2", "w3", "w4", "w5"]) + 2 + len(["w1", "w2"]) + 2
        await reward.score([TEN_TOKENS] * ((100 - used) // 10))
    left = (100 - used) % 10
    assert left < 10
    before = scored(world)
    error = await refusal(world, limited)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "has used its quota of 100 tokens for today" in error.details()
    assert 1 <= int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) <= 86_400_000
    assert (scored(world), refusals(world, "quota")) == (before, 1)
    async with client(world, limited) as reward:
        with pytest.raises(InvalidInput, match="at most 100 a day for the API key limited"):
            await reward.score([TEN_TOKENS] * 11)


async def test_invalid_request_costs_no_tokens(world: World, keys: Keys):
    limited = keys.add("limited", tokens_per_day=10)
    async with client(world, limited) as reward:
        with pytest.raises(InvalidInput, match="items"):
            await reward.score([TokenPair((5,), (10_000,))])
        assert len((await reward.score([TEN_TOKENS])).scores) == 1


async def test_key_has_limited_requests_in_flight(reward_folder, keys: Keys):
    one = keys.add("one", max_in_flight=1)
    other = keys.add("other", max_in_flight=1)
    async with reward_service(reward_folder, keys=keys.section) as world:
        started, resume = asyncio.Event(), asyncio.Event()
        score = world.scoring.score

        async def held(*items, **options):
            started.set()
            await resume.wait()
            return await score(*items, **options)

        world.scoring.score = held
        async with client(world, one) as first, client(world, other) as second:
            running = asyncio.create_task(first.score([TEN_TOKENS]))
            await started.wait()
            error = await refusal(world, one)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refusals(world, "in_flight") == 1
            waiting = asyncio.create_task(second.score([TEN_TOKENS]))
            await until(lambda: world.server._edge.in_flight == 2)
            resume.set()
            await asyncio.gather(running, waiting)
            await first.score([TEN_TOKENS])


async def test_revoked_key_is_refused_at_once(world: World, keys: Keys):
    key = keys.add("one")
    async with client(world, key) as reward:
        await reward.score([TEN_TOKENS])
        keys.revoke("one")
        with pytest.raises(Unauthenticated, match="one is revoked"):
            await reward.score([TEN_TOKENS])


async def test_requests_of_a_stream_are_counted_one_by_one(world: World, keys: Keys):
    key = keys.add("bulk", requests_per_second=1, tokens_per_day=100)
    async with client(world, key) as reward:
        outcomes = dict([one async for one in reward.score_stream([[TEN_TOKENS]] * 3, timeout_seconds=20)])
    assert len(outcomes) == 3
    assert refusals(world, "requests") >= 2
    with pytest.raises(Unauthenticated):
        async with client(world, "") as reward:
            _ = [one async for one in reward.score_stream([[TEN_TOKENS]])]


async def test_revoked_key_is_refused_within_a_stream(world: World, keys: Keys):
    """A stream may last for hours; requests after the revocation are refused one by one."""
    key = keys.add("bulk")
    revoked = asyncio.Event()

    async def asked():
        yield [TEN_TOKENS]
        await revoked.wait()
        yield [TEN_TOKENS]

    outcomes: dict[int, object] = {}
    async with client(world, key) as reward:
        async for index, outcome in reward.score_stream(asked(), timeout_seconds=20):
            outcomes[index] = outcome
            if not revoked.is_set():
                keys.revoke("bulk")
                revoked.set()
    assert isinstance(outcomes[0], Scores)
    assert isinstance(outcomes[1], Unauthenticated)
    assert "bulk is revoked" in str(outcomes[1])


async def test_without_key_file_any_caller_is_accepted(reward_folder):
    async with reward_service(reward_folder) as world:
        for key in ("", "anything"):
            async with client(world, key) as reward:
                assert len((await reward.score([TEN_TOKENS])).scores) == 1


def test_every_served_method_has_a_scope_and_others_need_admin():
    known = {
        "score": (pb, reference_service_pb2),
        "generate": (policy_service_pb2,),
        "weights": (weight_service_pb2,),
        "admin": (reward_admin_service_pb2,),
    }
    for scope, modules in known.items():
        for module in modules:
            for service in module.DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    assert scope_of(f"/{service.full_name}/{method.name}") == scope
    for method in (
        "/fairlead.v1.RewardService/Reload",
        "/inference.GRPCInferenceService/RepositoryModelLoad",
    ):
        assert scope_of(method) == "admin"
    assert scope_of("/inference.GRPCInferenceService/ServerReady") is None


def test_bulk_key_lowers_priority():
    bulk = ApiKey(id="a", sha256="0" * 64, scopes=("score",), max_priority="bulk")
    online = ApiKey(id="b", sha256="0" * 64, scopes=("score",))
    assert Caller("r", bulk).priority(Priority.ONLINE) is Priority.BULK
    assert Caller("r", online).priority(Priority.ONLINE) is Priority.ONLINE
    assert Caller("r", online).priority(Priority.BULK) is Priority.BULK
    assert Caller("r").priority(Priority.ONLINE) is Priority.ONLINE
