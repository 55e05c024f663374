"""The reward client: calibrated scores, rankings, best of n, and many requests in order."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from fairlead import PolicyClient, RetryPolicy, RewardClient, SamplingParams
from fairlead.clients import AsyncRewardClient
from fairlead.clients.bulk import in_order
from fairlead.errors import InvalidInput, RemoteInvalidInput
from fairlead.types import Message, Priority, TextPair, TokenPair
from tests.gateway_world import policy_server
from tests.tiny import tiny_reward_model
from tests.unit.services.reward.reward_world import Threaded, reward_service
from tests.waiting import until

MANY_ATTEMPTS = RetryPolicy(max_attempts=1_000, initial_backoff_seconds=0.01, max_backoff_seconds=0.1)
RESPONSES = ["w3", "w4 w5 w6", "w7", "w8 w9"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_reward_model(tmp_path_factory.mktemp("reward"))


async def test_calibrated_scores_are_divided_by_the_models_temperature(model):
    items = [("w1", response) for response in RESPONSES]
    async with (
        reward_service(model, calibration_temperature=2.5) as world,
        AsyncRewardClient(world.address) as client,
    ):
        raw = await client.score(items, priority=Priority.BULK, request_id="mine")
        divided = await client.score(items, calibrated=True)
    assert divided.scores == pytest.approx([score / 2.5 for score in raw.scores])
    assert raw.calibration_temperature == 2.5


async def test_without_temperature_calibration_fails_and_ranking_uses_raw_scores(model):
    async with reward_service(model) as world, AsyncRewardClient(world.address) as client:
        with pytest.raises(
            InvalidInput, match=r"calibrated: got True, allowed: false: the reward model has no"
        ):
            await client.score([("w1", "w2")], calibrated=True)
        with pytest.raises(InvalidInput, match="calibrated"):
            await client.rank("w1", RESPONSES, calibrated=True)
        ranking = await client.rank("w1", RESPONSES)
        scores = (await client.score([("w1", response) for response in RESPONSES])).scores
    assert not ranking.is_calibrated
    assert [one.probability for one in ranking.ranked] == [None] * 4
    assert [one.score for one in ranking.ranked] == sorted(scores, reverse=True)
    assert [(one.response, one.score) for one in sorted(ranking.ranked, key=lambda one: one.index)] == list(
        zip(RESPONSES, scores, strict=True)
    )


async def test_ranking_has_probabilities(model):
    """For two responses the probability is σ of the difference of calibrated scores."""
    async with (
        reward_service(model, calibration_temperature=3.0) as world,
        AsyncRewardClient(world.address) as client,
    ):
        ranking = await client.rank("w1", RESPONSES[:2])
        raw = (await client.score([("w1", response) for response in RESPONSES[:2]])).scores
        turns = await client.rank("w1", RESPONSES)
        best = await client.best_of_n("w1", RESPONSES)
    high, low = sorted(raw, reverse=True)
    assert ranking.is_calibrated
    assert ranking.best.probability == pytest.approx(1 / (1 + math.exp(-(high - low) / 3.0)))
    assert sum(one.probability for one in turns.ranked) == pytest.approx(1.0)
    assert best == turns.best


async def test_invalid_rankings_name_the_field(model):
    async with reward_service(model) as world, AsyncRewardClient(world.address) as client:
        for responses, got in (([], "none"), ("w1 w2", "w1 w2")):
            with pytest.raises(InvalidInput, match=f"responses: got '{got}', allowed: a list of texts"):
                await client.rank("w1", responses)
        with pytest.raises(InvalidInput, match="got 'neither', allowed: either responses or a policy"):
            await client.best_of_n("w1")
        with pytest.raises(RemoteInvalidInput, match="no chat template"):
            await client.rank([Message("user", "w1")], RESPONSES)


def test_best_of_n_with_a_policy(model, tmp_path):
    """A policy generates four responses; the best has the highest score."""
    sampling = SamplingParams(max_new_tokens=6, seed=3)
    with Threaded() as services:
        world, running = services.serve(reward_service(model)), services.serve(policy_server(tmp_path))
        with PolicyClient(running.address) as policy, RewardClient(world.address) as reward:
            best = reward.best_of_n("w1 w2", policy=policy, n=4, sampling=sampling)
            texts = [found.text for found in policy.generate("w1 w2", sampling, num_samples=4)]
            scores = reward.score([("w1 w2", text) for text in texts]).scores
            with pytest.raises(InvalidInput, match="n: got 0"):
                reward.best_of_n("w1", policy=policy, n=0)
            with pytest.raises(InvalidInput, match="prompt: got '1 messages'"):
                reward.best_of_n([Message("user", "w1")], policy=policy)
            with pytest.raises(InvalidInput, match="responses: got 'both'"):
                reward.best_of_n("w1", ["w2"], policy=policy)
    assert len(set(texts)) > 1
    assert best.score == pytest.approx(max(scores), abs=1e-5)
    assert best.response == texts[best.index]


async def test_outcomes_are_in_order_and_reading_ahead_is_limited():
    """Work finishes in random order; inputs are read at most `ahead` past the earliest missing outcome."""
    rng, read, taken = random.Random(1), [0], [0]

    def inputs():
        for number in range(300):
            read[0] += 1
            assert read[0] - taken[0] <= 21
            yield number

    async def work(given):
        pool: list[int] = []
        async for one in given:
            pool.append(one)
            if len(pool) >= 10 or one == 299:
                rng.shuffle(pool)
                # The earliest input must not wait for inputs that wait for it.
                while len(pool) > 5 or (one == 299 and pool):
                    number = pool.pop(0) if rng.random() < 0.5 else pool.pop(pool.index(min(pool)))
                    yield number, number * number
        for number in pool:
            yield number, number * number

    found = []
    async for outcome in in_order(inputs(), work, ahead=20):
        found.append(outcome)
        taken[0] += 1
    assert found == [number * number for number in range(300)]


def requests(count: int) -> list[list[TokenPair]]:
    return [[TokenPair((5, 6 + n % 40), (7 + n % 30,) * (1 + n % 5))] * (1 + n % 3) for n in range(count)]


def test_many_requests_are_scored_in_order(model):
    with Threaded() as services:
        world = services.serve(reward_service(model, calibration_temperature=2.0))
        with RewardClient(world.address) as client:
            asked = requests(200)
            found = list(client.score_in_order(asked, max_in_flight=16, calibrated=True))
            expected = [client.score(items).scores for items in asked]
            assert [len(one.scores) for one in found] == [len(items) for items in asked]
            for one, scores in zip(found, expected, strict=True):
                assert one.scores == pytest.approx([score / 2.0 for score in scores], abs=1e-5)
            seen = []
            bad = [*asked[:5], [TokenPair((99,), (1,))], *asked[5:]]
            with pytest.raises(RemoteInvalidInput, match=r"prompt_token_ids\[0\]: got '99"):
                seen.extend(client.score_in_order(bad, max_in_flight=4))
            assert list(client.score_in_order([])) == []


async def test_stream_continues_on_the_next_server_without_loss(model):
    """The server stops during the stream; another one starts at the same address."""
    asked = requests(400)
    async with reward_service(model) as first:
        address = first.address
        client = AsyncRewardClient(address, retry=MANY_ATTEMPTS)
        expected = [(await client.score(items)).scores for items in asked[:3]]
        found = []
        async with client:
            scores = client.score_in_order(asked, max_in_flight=8)
            async for one in scores:
                found.append(one.scores)
                if len(found) == 100:
                    break
            await first.server.drain()
            async with reward_service(model, bind=address):
                async for one in scores:
                    found.append(one.scores)
    assert [len(one) for one in found] == [len(items) for items in asked]
    for scores, wanted in zip(found, expected, strict=False):
        assert scores == pytest.approx(wanted)


async def test_texts_are_accepted_and_inputs_are_read_on_demand(model):
    read = []

    async def endless():
        number = 0
        while True:
            read.append(number)
            yield [TextPair("w1", f"w{number % 50}")]
            number += 1
            await asyncio.sleep(0)

    async with reward_service(model) as world, AsyncRewardClient(world.address) as client:
        scores = client.score_in_order(endless(), max_in_flight=4)
        first = await anext(scores)
        await until(lambda: len(read) >= 4)
        assert len(read) <= 4 + 2
        await scores.aclose()
    assert len(first.scores) == 1
