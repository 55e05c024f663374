"""Reward and reference models divided among ranks: the same numbers, swaps, and no hang without a message."""

from __future__ import annotations

import asyncio
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fairlead import ReferenceClient, RewardClient, TokenPair
from fairlead.clients import AsyncReferenceClient, RewardAdminClient
from fairlead.config.serving import ReferenceSection, RewardSection
from fairlead.errors import ReplicaLost, Unavailable
from fairlead.rpc.retry import RetryPolicy
from services.reference.model import Lookup
from services.reference.scorer import ReferenceScorer
from services.reward.scorer import RewardScorer
from tests.integration.ppo_run import check, left_over, make, started
from tests.service_process import Process, Starter
from tests.tiny import tiny_causal_lm, tiny_reward_model
from tests.waiting import until

pytestmark = pytest.mark.timeout(900)
_START_SECONDS = 400.0
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "reference": tiny_causal_lm(folder / "reference", tie_word_embeddings=True),
        "reward": tiny_reward_model(folder / "reward"),
        "newer": tiny_reward_model(folder / "newer", seed=1),
    }


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[Starter]:
    found = Starter(tmp_path)
    try:
        yield found
    finally:
        found.stop()


def divided(starter: Starter, name: str, folder: Path, **settings: object) -> Process:
    own = {"tensor_parallel": 2, "device": "cpu"} | settings
    process = starter(name, folder, **{f"{name}.{key}": value for key, value in own.items()})
    process.until(lambda: process.get("/readyz")[0] == 200, seconds=_START_SECONDS)
    return process


def ranks(process: Process) -> list[psutil.Process]:
    """Return the ranks of a service, in the order in which they were started."""
    found = psutil.Process(process.popen.pid).children()
    return sorted(found, key=lambda one: one.create_time())


def ended(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


def pairs(seed: int = 0, count: int = 12) -> list[TokenPair]:
    rng = random.Random(seed)

    def ids(longest: int) -> tuple[int, ...]:
        return tuple(rng.randrange(4, 60) for _ in range(rng.randint(1, longest)))

    prompt = ids(60)  # several items share a prompt
    return [TokenPair(prompt if index % 3 else ids(60), ids(60)) for index in range(count)]


def scorers(models: dict[str, Path]) -> dict[str, RewardScorer]:
    """Return scorers of the reward models in this process."""
    section = RewardSection(device="cpu")
    return {name: RewardScorer(str(models[name]), section) for name in ("reward", "newer")}


def check_scores(client: RewardClient, own: RewardScorer, **options: str) -> None:
    """Check that the service gives the scores of one process."""
    found = client.score(pairs(), **options)
    expected = own.score(own.encode(pairs()))
    assert max(abs(a - b) for a, b in zip(found.scores, expected, strict=True)) <= TOLERANCE
    assert found.model_version == own.info.model_version


@pytest.mark.slow
def test_divided_reward_model_gives_the_scores_of_one_process(models, starter: Starter):
    process = divided(starter, "reward", models["reward"])
    own = scorers(models)["reward"]
    both = ranks(process)
    assert len(both) == 2
    with RewardClient(process.address) as client:
        assert client.info().model == own.info.model
        for _ in range(2):  # the second time, prompts are in the cache
            check_scores(client, own)
    assert process.stop() == 0
    assert ended(both)


@pytest.mark.slow
def test_divided_reward_model_can_be_replaced(models, starter: Starter):
    process = divided(starter, "reward", models["reward"], allow_reload="always")
    own = scorers(models)
    with RewardClient(process.address) as client, RewardAdminClient(process.address) as admin:
        first = ranks(process)
        admin.load(str(models["newer"]), canary_share=0.5)
        both = ranks(process)
        assert len(both) == 4
        for scorer in own.values():
            check_scores(client, scorer, model_version=scorer.info.model_version)
        admin.promote()
        check_scores(client, own["newer"])
        process.until(lambda: ended(first))
    assert process.stop() == 0
    assert ended(both)


@pytest.mark.slow
async def test_service_ends_with_a_message_when_a_rank_is_killed(models, starter: Starter):
    process = await asyncio.to_thread(divided, starter, "reference", models["reference"])
    own = ReferenceScorer(str(models["reference"]), ReferenceSection(device="cpu"))
    with ReferenceClient(process.address) as client:
        assert client.info().model == own.info.model
        for temperature in (0.7, 1.0):
            found = client.logprobs(pairs(), temperature=temperature)
            expected = own.logprobs([Lookup(pair, temperature) for pair in pairs()])
            for row, other in zip(found, expected, strict=True):
                assert isinstance(other, tuple)
                assert max(abs(a - b) for a, b in zip(row, other, strict=True)) <= TOLERANCE
    both = ranks(process)
    both[1].send_signal(signal.SIGSTOP)  # so that a batch is in progress
    once = RetryPolicy(max_attempts=1)
    async with AsyncReferenceClient(process.address, retry=once) as client:
        calls = [
            asyncio.create_task(client.logprobs(pairs(call), temperature=1.0, fatal_to_replica=True))
            for call in range(4)
        ]
        await until(lambda: "a forward pass" in process.get("/waiting")[1])
        both[1].send_signal(signal.SIGKILL)
        failures = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)
    assert all(isinstance(failure, Unavailable) for failure in failures)
    # Only the calls of that batch may have caused the death.
    assert any(isinstance(failure, ReplicaLost) for failure in failures)
    assert await asyncio.to_thread(process.popen.wait, 60) == 1
    assert re.search(
        "rank 1 of 2 of the reference model has ended: killed by SIGKILL", process.log.read_text()
    )
    assert ended(both)


@pytest.mark.slow
def test_run_continues_after_ranks_of_both_services_were_killed(tmp_path: Path):
    file = make(tmp_path, updates=6)
    flags = [f"{name}.tensor_parallel=2" for name in ("reward", "reference")]
    with started(file, *(part for flag in flags for part in ("--set", flag))) as run:
        for name, after in (("reward-0", 1), ("reference-0", 2)):
            run.until(lambda: run.step() >= after, seconds=_START_SECONDS)  # noqa: B023
            service = run.pids()[name]
            psutil.Process(service).children()[1].send_signal(signal.SIGKILL)
            run.until(lambda: run.pids().get(name, service) != service)  # noqa: B023
            done = run.step()
            run.until(lambda: run.step() > done, seconds=_START_SECONDS)  # noqa: B023
        code, output = run.finish(seconds=_START_SECONDS)
        assert code == 0, output + run.log_tails()
        for name in ("reward", "reference"):
            message = f"rank . of 2 of the {name} model has ended: killed by SIGKILL"
            assert re.search(message, run.folder.log(f"{name}-0").read_text())
        check(run.folder)
        assert left_over(run.folder) == []
