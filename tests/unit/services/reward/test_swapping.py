"""Models replaced under load: no request fails, and every score is that of the reported version."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import weakref

import pytest
import tritonclient.grpc.aio as triton
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.clients import AsyncRewardAdminClient, AsyncRewardClient
from fairlead.config.infrastructure import ObserveSection
from fairlead.config.serving import RewardSection
from fairlead.errors import (
    Unavailable,
)
from fairlead.rpc.retry import RetryPolicy
from fairlead.types import TokenPair
from services.reward import loaded
from services.reward.dialects import Dialects
from services.reward.scorer import RewardScorer
from services.reward.swapping import SwappingScoring
from services.runtime.server import ModelServer
from tests.tiny import tiny_reward_model
from tests.unit.services.open_inference.grpc_requests import tokens_of
from tests.unit.services.reward.reward_world import reward_service
from tests.waiting import until

ONCE = RetryPolicy(max_attempts=1)

PAIRS = [TokenPair((), tuple(random.Random(seed).choices(range(4, 60), k=5 + seed))) for seed in range(40)]

OPEN = {"allow_reload": "always"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return [tiny_reward_model(tmp_path_factory.mktemp(f"reward{seed}"), seed=seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def oracle(models) -> dict[str, list[float]]:
    """Version → the score of each of PAIRS, from a separate scorer."""
    found = {}
    for path in models:
        scorer = RewardScorer(str(path), RewardSection(device="cpu"))
        scores = [scorer.score(scorer.encode([pair]))[0] for pair in PAIRS]
        found[scorer.info.model_version] = scores
    assert len(found) == 3
    return found


class Load:
    """Callers of every protocol that send requests until `stop` is set; a wrong score fails their task."""

    def __init__(self, address: str, oracle: dict[str, list[float]]) -> None:
        self.address, self.oracle = address, oracle
        self.versions: list[str] = []
        self.stop = asyncio.Event()

    def check(self, index: int, score: float, version: str) -> None:
        assert score == pytest.approx(self.oracle[version][index], abs=1e-5)
        self.versions.append(version)

    async def unary(self) -> None:
        async with AsyncRewardClient(self.address, retry=ONCE) as client:
            while not self.stop.is_set():
                index = random.randrange(len(PAIRS))
                scores = await client.score([PAIRS[index]])
                self.check(index, scores.scores[0], scores.model_version)

    async def stream(self) -> None:
        asked = []

        async def feed():
            while not self.stop.is_set():
                asked.append(random.randrange(len(PAIRS)))
                yield [PAIRS[asked[-1]]]

        async with AsyncRewardClient(self.address, retry=ONCE) as client:
            async for number, scores in client.score_stream(feed(), max_in_flight=8):
                self.check(asked[number], scores.scores[0], scores.model_version)

    async def inference(self) -> None:
        async with triton.InferenceServerClient(self.address) as client:
            while not self.stop.is_set():
                index = random.randrange(len(PAIRS))
                result = await client.infer("reward", tokens_of([PAIRS[index].response_token_ids], triton))
                self.check(
                    index,
                    result.as_numpy("rewards")[0, 0],
                    result.get_response().parameters["model_version"].string_param,
                )


async def test_swaps_and_canaries_under_load_fail_no_request(models, oracle):
    first, second, third = (str(path) for path in models)
    async with reward_service(first, **OPEN) as world:
        load = Load(world.address, oracle)
        callers = [
            asyncio.create_task(work)
            for work in (load.unary(), load.unary(), load.stream(), load.inference())
        ]

        async def served_for_a_while() -> None:
            seen = len(load.versions)
            await until(lambda: len(load.versions) > seen + 50 or any(task.done() for task in callers))

        async with AsyncRewardAdminClient(world.address, retry=ONCE) as admin:
            for path in (second, third, first, second):
                await served_for_a_while()
                (served,) = await admin.load(path)
                assert served.info.model.model_id == path
                assert served.share == 1.0
            for share in (0.2, 0.5):
                await admin.load(third, canary_share=share)
                await served_for_a_while()
                await admin.set_share(0.9)
                await served_for_a_while()
            current, canary = await admin.models()
            assert (current.info.model.model_id, canary.info.model.model_id) == (second, third)
            assert canary.share == 0.9
            (promoted,) = await admin.promote(canary.info.model_version)
            assert (await admin.promote(canary.info.model_version)) == [promoted], (
                "promoting twice is allowed"
            )
            await admin.load(first, canary_share=0.5)
            await served_for_a_while()
            (remaining,) = await admin.abandon()
            assert remaining == promoted
            assert (await admin.abandon()) == [promoted]
            await served_for_a_while()
        last = len(load.versions)
        load.stop.set()
        await asyncio.gather(*callers)
        assert set(load.versions) == set(oracle)
        assert set(load.versions[last:]) <= {promoted.info.model_version}
        assert world.registry.get_sample_value("fairlead_reward_swaps_total") == 5
        for code in ("INTERNAL", "UNAVAILABLE", "INVALID_ARGUMENT", "CANCELLED"):
            assert world.count("grpc_server_handled_total", "Score", grpc_code=code) == 0


async def test_running_requests_finish_on_the_model_that_started_them(models):
    first, second, _ = (str(path) for path in models)
    async with (
        reward_service(first, batching={"max_batch_tokens": 64}) as world,
        AsyncRewardClient(world.address) as client,
    ):
        before = world.version
        begun = [asyncio.create_task(client.score([TokenPair((), (5,) * 60)] * 50)) for _ in range(8)]
        await until(lambda: world.queue_tokens > 0)
        await world.scoring.load(second)
        assert world.version != before
        after = await client.score([PAIRS[0]])
        assert after.model_version == world.version
        assert {scores.model_version for scores in await asyncio.gather(*begun)} == {before}


async def test_canary_share_holds_and_repeated_requests_reach_the_same_model(models):
    first, second, _ = (str(path) for path in models)
    async with reward_service(first) as world, AsyncRewardClient(world.address) as client:
        await world.scoring.load(second, canary_share=0.3)
        canary = world.scoring.info.canary_model_version
        assert (await client.info()).canary_model_version == canary
        assert (await client.info()).canary_share == 0.3

        async def versions(names: list[str]) -> list[str]:
            found = await asyncio.gather(*(client.score([PAIRS[0]], request_id=name) for name in names))
            return [scores.model_version for scores in found]

        names = [f"request-{number}" for number in range(1_000)]
        once, again = await versions(names), await versions(names)
        assert once == again
        share = once.count(canary) / len(once)
        assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / len(once))
        counted = {
            name: world.registry.get_sample_value("fairlead_reward_requests_total", {"model": name})
            for name in ("current", "canary")
        }
        assert counted == {"canary": 2 * once.count(canary), "current": 2 * (1_000 - once.count(canary))}
        await world.scoring.set_share(0.6)
        wider = await versions(names)
        # Requests that the canary scored stay with it when its share grows.
        assert all(now == canary for now, then in zip(wider, once, strict=True) if then == canary)


async def test_any_loaded_version_can_be_requested(models, oracle):
    first, second, _ = (str(path) for path in models)
    async with reward_service(first) as world, triton.InferenceServerClient(world.address) as client:
        await world.scoring.load(second, canary_share=0.01)
        versions = [info.model_version for info in world.scoring.models]
        metadata = await client.get_model_metadata("reward")
        numbers = list(metadata.versions)
        assert len(set(numbers)) == 2
        for asked, version in zip([*numbers, *versions], versions * 2, strict=True):
            result = await client.infer(
                "reward", tokens_of([PAIRS[3].response_token_ids], triton), model_version=asked
            )
            assert result.get_response().parameters["model_version"].string_param == version
            assert result.get_response().model_version == numbers[versions.index(version)]
            assert result.as_numpy("rewards")[0, 0] == pytest.approx(oracle[version][3], abs=1e-5)
        index = await client.get_model_repository_index()
        assert [model.version for model in index.models] == numbers


async def test_replaced_model_frees_its_memory(models):
    first, second, _ = (str(path) for path in models)
    async with reward_service(first) as world, AsyncRewardClient(world.address) as client:
        await client.score([PAIRS[0]])
        scorer = world.scoring._current._scorer
        gone = [weakref.ref(scorer), weakref.ref(scorer.model.reward.members[0].model)]
        del scorer
        await world.scoring.load(second)
        await until(lambda: not any(ref() for ref in gone))
        canary = (await world.scoring.load(first, canary_share=0.5))[1]
        assert canary.share == 0.5
        gone = [weakref.ref(world.scoring._canary._scorer.model.reward.members[0].model)]
        await world.scoring.abandon()
        await until(lambda: not any(ref() for ref in gone))


async def test_load_continues_when_its_caller_is_cancelled(models):
    async with reward_service(models[0]) as world:
        scoring: SwappingScoring = world.scoring
        before = world.version
        task = asyncio.create_task(scoring.load(str(models[1])))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        await until(lambda: world.version != before)


async def test_stop_does_not_wait_for_a_loading_model(models):
    """The process ends without waiting for the thread that loads."""
    registry = CollectorRegistry()
    section = RewardSection(path=str(models[0]), bind="127.0.0.1:0", device="cpu", allow_reload="always")
    began, ends = threading.Event(), threading.Event()

    def slow(path: str, section: RewardSection, reward_metrics: metrics.RewardMetrics | None) -> RewardScorer:
        began.set()
        assert ends.wait(60)
        return RewardScorer(path, section)

    async with ModelServer("reward", section, ObserveSection(), registry=registry) as server:
        scoring = await SwappingScoring.open(
            section.path,
            section,
            batcher_metrics=metrics.BatcherMetrics(registry),
            reward_metrics=metrics.RewardMetrics(registry),
            load=server.load,
        )
        async with scoring:
            dialects = Dialects(scoring, section, requires_keys=False, ready=lambda: server.ready)
            address = await server.start(dialects.add_to, dialects.names)
            server.set_ready(True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loaded, "_scorer", slow)
                async with AsyncRewardAdminClient(address, retry=ONCE) as admin:
                    loading = asyncio.create_task(admin.load(str(models[1])))
                    await until(began.is_set)
                    server.stop()
                    with pytest.raises(Unavailable, match="stopping"):
                        await loading
            await server.run_until_stopped()
        assert scoring.still_loading
        assert not ends.is_set()
    ends.set()
