"""The caller against a real gateway: right scores, wrong ones and errors to retry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from tests.chaos.caller import REFUSED, RIGHT, SILENT, WRONG, Caller, Text, oracle
from tests.gateway_world import gateway, reward_server
from tests.service_process import free_address
from tests.tiny import tiny_reward_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reward_model(tmp_path_factory.mktemp("reward"), seed=2)


@pytest.fixture(scope="module")
def scores(folder: Path) -> Mapping[Text, float]:
    return oracle(folder)


@pytest.fixture
async def address(folder: Path) -> AsyncIterator[str]:
    async with reward_server(folder) as reward, gateway(reward=reward) as found:
        yield found.address


async def asked(address: str, scores: Mapping[Text, float], *, replies: int) -> Caller:
    caller = Caller(address, scores, seed=1)
    asking = asyncio.ensure_future(caller.run())
    async with asyncio.timeout(30):
        while len(caller.replies) < replies:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    return caller


async def test_right_scores_are_accepted_in_both_dialects(address: str, scores: Mapping[Text, float]):
    caller = await asked(address, scores, replies=8)
    assert caller.count() == {RIGHT: len(caller.replies), REFUSED: 0, SILENT: 0, WRONG: 0}
    first, last = caller.replies[0], caller.replies[-1]
    recovery = caller.recovery_seconds(first.asked - 1.0)
    assert recovery is not None
    assert recovery >= 1.0
    assert caller.recovery_seconds(last.ended + 1.0) is None
    assert caller.longest_without(until=last.ended + 50.0) >= 50.0


async def test_score_with_small_error_is_wrong(address: str, scores: Mapping[Text, float]):
    caller = await asked(address, {text: score + 0.002 for text, score in scores.items()}, replies=4)
    assert {reply.kind for reply in caller.replies} == {WRONG}
    assert "expected scores: " in caller.replies[0].detail


async def test_missing_reward_service_is_refused_and_missing_gateway_silent(
    folder: Path, scores: Mapping[Text, float]
):
    async with reward_server(folder) as reward:
        serving = gateway(reward=reward, retry_attempts=1)
        found = await serving.__aenter__()
    try:
        caller = await asked(found.address, scores, replies=4)
    finally:
        await serving.__aexit__(None, None, None)
    assert {reply.kind for reply in caller.replies} == {REFUSED}
    caller = await asked(free_address(), scores, replies=4)
    assert {reply.kind for reply in caller.replies} == {SILENT}
