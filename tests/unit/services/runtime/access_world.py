"""Helpers for tests of a reward service with API keys: calls, refusals and metrics."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
from grpc import aio

from fairlead.clients import AsyncRewardClient
from fairlead.types import TokenPair
from fairlead.v1 import reward_service_pb2 as pb
from fairlead.v1 import reward_service_pb2_grpc as pb_grpc
from tests.metric_values import total
from tests.unit.services.reward.reward_world import World

TEN_TOKENS = TokenPair((5, 6, 7, 8, 9), (10, 11, 12, 13, 14))


@asynccontextmanager
async def stub_of(world: World):
    async with aio.insecure_channel(world.address) as channel:
        yield pb_grpc.RewardServiceStub(channel)


def request(count: int = 1) -> pb.ScoreRequest:
    item = pb.ScoreItem()
    item.tokens.prompt_token_ids.extend(TEN_TOKENS.prompt_token_ids)
    item.tokens.response_token_ids.extend(TEN_TOKENS.response_token_ids)
    return pb.ScoreRequest(items=[item] * count)


async def refusal(world: World, key: str | None, body: pb.ScoreRequest | None = None) -> aio.AioRpcError:
    metadata = [("x-request-id", "mine")] + ([("authorization", f"Bearer {key}")] if key is not None else [])
    async with stub_of(world) as stub:
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Score(body or request(), metadata=metadata, timeout=30)
    trailers = dict(caught.value.trailing_metadata())
    assert trailers["x-request-id"] == "mine"
    return caught.value


def scored(world: World) -> float:
    labels = {"result": "scored"}
    return world.registry.get_sample_value("fairlead_batcher_sequences_total", labels) or 0.0


def refusals(world: World, reason: str) -> float:
    return total(world.registry, "fairlead_access_refusals_total", reason=reason)


def client(world: World, key: str | None, **options) -> AsyncRewardClient:
    return AsyncRewardClient(world.address, api_key=key, **{"timeout_seconds": 5, **options})
