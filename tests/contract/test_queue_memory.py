"""The memory of the queue stays within the bound that is logged at start: a real Valkey, many updates."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import redis
from prometheus_client import CollectorRegistry

from fairlead.config import load
from fairlead.config.infrastructure import QueueSection
from fairlead.local.valkey import ValkeyServer, running
from fairlead.metrics import TrainerMetrics
from fairlead.transports.rollouts.redis_connection import Keys
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from fairlead.transports.rollouts.redis_worker import RedisWorkerQueue
from fairlead.types import (
    Completion,
    FinishReason,
    PromptTask,
    Rollout,
    SamplingParams,
    VersionSpan,
    WeightVersion,
)
from trainer.ppo import queue_capacity

BATCH, TOKENS, PROMPT_BYTES = 16, 64, 400


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with running(tmp_path_factory.mktemp("valkey")) as started:
        yield started


def task(number: int, *, samples: int = 1) -> PromptTask:
    ids = tuple(range(60_000, 60_000 + PROMPT_BYTES))
    return PromptTask(
        number, ids, "x" * PROMPT_BYTES, SamplingParams(seed=number), WeightVersion(1, 0), num_samples=samples
    )


def longest(version: WeightVersion) -> tuple[Rollout]:
    completion = Completion(
        tuple(range(90_000, 90_000 + TOKENS)),
        (-0.5,) * TOKENS,
        FinishReason.LENGTH,
        (VersionSpan(version, 0, TOKENS),),
        text="seven__ " * TOKENS,
    )
    return (Rollout(completion, 0.5, "r", (-0.25,) * TOKENS),)


@pytest.mark.parametrize(("max_staleness", "samples"), [(0, 1), (2, 4)])
async def test_queue_memory_stays_within_bound(
    server: ValkeyServer, max_staleness: int, samples: int
) -> None:
    """Delete as a trainer does: what a resume could not use at once, the rest at the next checkpoint."""
    config = load(
        overrides={
            "ppo.batch_size": BATCH * samples,
            "ppo.num_samples": samples,
            "ppo.mini_batch_size": BATCH,
            "ppo.max_staleness": max_staleness,
            "sampling.max_new_tokens": TOKENS,
        }
    )
    bound = queue_capacity.required_capacity(config, longest_prompt_bytes=PROMPT_BYTES)
    run = f"memory-{max_staleness}"
    section = QueueSection(redis_url=server.url)
    trainer = RedisTrainerQueue.connect(section, run=run)
    worker = await RedisWorkerQueue.connect(section, run=run, consumer="w")
    raw = redis.Redis.from_url(server.url)
    trainer.take_fence(1)
    used, outcomes, after, retained = [], [], "0", []
    sent = checkpoint = 0
    for update in range(60):
        until = (update + max_staleness + 1) * BATCH
        trainer.dispatch([task(number, samples=samples) for number in range(sent, until)])
        sent = (update + max_staleness + 1) * BATCH
        for claim in await worker.claim(count=sent, block_seconds=0):
            await worker.finish(claim, longest(WeightVersion(1, update)) * samples)
        used.append(sum(raw.memory_usage(key, samples=0) or 0 for key in Keys(run).all()))
        outcomes.append(raw.xlen(Keys(run).rollouts))
        entries = trainer.read(after=after, count=BATCH, block_seconds=0)
        assert [entry.outcome.task.task_id for entry in entries] == list(
            range(update * BATCH, (update + 1) * BATCH)
        )
        after = entries[-1].entry_id
        void = [e for e in entries if max(e.outcome.versions).update > checkpoint]
        trainer.delete([entry.entry_id for entry in void])
        retained += [entry.entry_id for entry in entries if entry not in void]
        if (update + 1) % 7 == 0:
            trainer.delete(retained)
            checkpoint, retained = update + 1, []
    payload = trainer.stats().outcome_bytes / trainer.stats().outcomes
    assert payload <= bound.outcome_bytes < 1.5 * payload
    assert max(outcomes) <= bound.outcomes
    assert max(used) <= bound.total_bytes
    # The bound is useful for planning, and the second half needs no more than the first.
    assert max(used) > bound.total_bytes / 10
    assert max(used[30:]) <= 1.05 * max(used[:30])
    await worker.close()
    trainer.close()
    raw.close()


def test_bound_is_logged_and_small_maxmemory_warned(
    server: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    config = load(overrides={"sampling.max_new_tokens": 1000, "ppo.batch_size": 128})
    metrics = TrainerMetrics(CollectorRegistry())
    trainer = RedisTrainerQueue.connect(QueueSection(redis_url=server.url), run="small")
    with (
        redis.Redis.from_url(server.url) as raw,
        caplog.at_level(logging.INFO, logger=queue_capacity.__name__),
    ):
        queue_capacity.log_capacity(config, trainer, longest_prompt_bytes=1000, metrics=metrics)
        assert [record.levelname for record in caplog.records if record.name == queue_capacity.__name__] == [
            "INFO"
        ]
        raw.config_set("maxmemory", 5 << 20)
        queue_capacity.log_capacity(config, trainer, longest_prompt_bytes=1000, metrics=metrics)
        raw.config_set("maxmemory", 0)
    expected = "the queue needs at most 9.3 MiB: 128 tasks under way, 256 outcomes of up to 23.9 KiB"
    assert expected in [record.getMessage() for record in caplog.records]
    assert "Redis has maxmemory 5242880: raise maxmemory" in caplog.records[-1].getMessage()
    trainer.close()
