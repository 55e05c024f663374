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
from fairlead.errors import Overloaded
from fairlead.rpc.retry import RetryPolicy
from fairlead.types import TokenPair
from services.batching.batcher import MicroBatcher
from services.reference.scorer import ReferenceScorer
from services.reference.servicer import SERVICE_NAME, ReferenceServicer
from services.reward.scorer import RewardScorer
from services.runtime.server import ModelServer
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


@asynccontextmanager
async def reward(folder, held: Held, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ask]:
    tiny_reward_model(folder)
    prepare, tried = RewardScorer.prepare, threading.Event()

    def prepared(scorer, sequences):
        if tried.is_set():
            held.begin(list(map(len, sequences)))
        return prepare(scorer, sequences)

    monkeypatch.setattr(RewardScorer, "prepare", prepared)
    async with reward_service(folder) as world, AsyncRewardClient(world.address, retry=ONCE) as client:
        tried.set()
        yield lambda length, **options: client.score([TokenPair((5,), (6,) * (length - 1))], **options)


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
async def test_exclusive_call_is_refused_while_others_run_then_accepted(
    tmp_path, monkeypatch: pytest.MonkeyPatch, service
) -> None:
    held = Held()
    async with service(tmp_path / "model", held, monkeypatch) as ask:
        first = asyncio.create_task(ask(3))
        await held.until(1)
        with pytest.raises(Overloaded, match="other requests are still running"):
            await ask(4, exclusive=True)
        late = asyncio.create_task(ask(5))
        held.go.release()
        await first
        exclusive = asyncio.create_task(ask(4, exclusive=True))
        await held.until(2)
        with pytest.raises(Overloaded):
            await ask(6, exclusive=True)
        held.go.release(2)
        await asyncio.gather(exclusive, late)
    assert held.batches == [[3], [4], [5]]
