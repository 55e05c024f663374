"""Exclusive calls to the reward and reference services, over the wire."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.clients import AsyncReferenceClient, AsyncRewardClient
from fairlead.config.infrastructure import ObserveSection
from fairlead.config.serving import ReferenceSection
from fairlead.errors import ReplicaLost, Unavailable
from fairlead.rpc.retry import RetryPolicy
from fairlead.types import TokenPair
from services.batching.batcher import MicroBatcher
from services.reference.scorer import ReferenceScorer
from services.reference.servicer import SERVICE_NAME, ReferenceServicer
from services.reward.scorer import RewardScorer
from services.runtime.server import ModelServer
from tests.chaos.proxy import Proxy
from tests.tiny import tiny_causal_lm, tiny_reward_model
from tests.unit.services.reward.reward_world import reward_service

ONCE = RetryPolicy(max_attempts=1)


@dataclass
class Held:
    """A model that starts each batch when the test allows it, and records the lengths of its sequences."""

    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[list[int]] = field(default_factory=list)

    def begin(self, lengths: list[int]) -> None:
        self.batches.append(lengths)
        assert self.go.acquire(timeout=30)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.batches) < count:  # noqa: ASYNC110 - a condition with a deadline
                await asyncio.sleep(0.001)


Ask = Callable[..., Coroutine[Any, Any, object]]


@dataclass
class Through:
    """Puts a proxy between client and server."""

    proxy: Proxy = field(default_factory=lambda: Proxy("", 0))

    async def to(self, address: str) -> str:
        host, _, port = address.rpartition(":")
        self.proxy = Proxy(host, int(port))
        await self.proxy.start()
        return self.proxy.address


@asynccontextmanager
async def reward(
    folder, held: Held, monkeypatch: pytest.MonkeyPatch, *, through: Through | None = None
) -> AsyncIterator[Ask]:
    tiny_reward_model(folder)
    prepare, tried = RewardScorer.prepare, threading.Event()

    def prepared(scorer, sequences):
        if tried.is_set():
            held.begin(list(map(len, sequences)))
        return prepare(scorer, sequences)

    monkeypatch.setattr(RewardScorer, "prepare", prepared)
    async with reward_service(folder) as world:
        address = await through.to(world.address) if through else world.address
        async with AsyncRewardClient(address, retry=ONCE) as client:
            tried.set()
            yield lambda length, **options: client.score([TokenPair((5,), (6,) * (length - 1))], **options)
        if through:
            await through.proxy.cut()


@asynccontextmanager
async def reference(folder, held: Held, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ask]:
    tiny_causal_lm(folder)
    section = ReferenceSection(path=str(folder), bind="127.0.0.1:0", device="cpu")
    scorer, registry = ReferenceScorer(str(folder), section), CollectorRegistry()
    batcher_metrics = metrics.BatcherMetrics(registry)

    def logprobs(lookups):
        held.begin([lookup.num_tokens for lookup in lookups])
        return scorer.logprobs(lookups)

    async with ModelServer("reference", section, ObserveSection(), registry=registry) as server:
        batching = MicroBatcher(
            logprobs, section.batching, batcher_metrics=batcher_metrics, field_name="sequences"
        )
        async with batching as batcher:
            address = await server.start(ReferenceServicer(scorer, batcher).add_to, [SERVICE_NAME])
            server.set_ready(True)
            async with AsyncReferenceClient(address, retry=ONCE) as client:
                yield lambda length, **options: client.logprobs(
                    [TokenPair((5,), (6,) * (length - 1))], temperature=1.0, **options
                )
            await server.drain()


@pytest.mark.parametrize("service", [reward, reference])
async def test_exclusive_calls_run_in_turn_and_next_to_no_other(
    tmp_path, monkeypatch: pytest.MonkeyPatch, service
) -> None:
    held = Held()
    async with service(tmp_path / "model", held, monkeypatch) as ask:
        calls = [asyncio.create_task(ask(3))]
        await held.until(1)
        for length, exclusive in ((4, True), (5, False), (6, True)):
            calls.append(asyncio.create_task(ask(length, exclusive=exclusive)))
            await asyncio.sleep(0.05)  # the calls arrive in this order
        for count in range(1, 5):
            await held.until(count)
            assert len(held.batches) == count
            held.go.release()
        await asyncio.gather(*calls)
    assert held.batches == [[3], [4], [5], [6]]


@pytest.mark.parametrize("begun", [False, True])
async def test_death_is_the_fault_of_an_exclusive_call_only_once_it_has_begun(
    tmp_path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    held = Held()
    through = Through()
    async with reward(tmp_path / "model", held, monkeypatch, through=through) as ask:
        calls = [
            asyncio.create_task(ask(length, exclusive=length == 4)) for length in ((4,) if begun else (3, 4))
        ]
        await held.until(1)
        assert held.batches == [[4 if begun else 3]]
        await asyncio.sleep(0.05)  # the exclusive call arrives
        await through.proxy.cut()
        *_, error = await asyncio.gather(*calls, return_exceptions=True)
        held.go.release()
    assert type(error) is (ReplicaLost if begun else Unavailable)
