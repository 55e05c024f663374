"""Both queues keep the same rules: this suite runs against memory and against a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import pytest

from fairlead.config.infrastructure import QueueSection
from fairlead.errors import Fenced
from fairlead.local.valkey import ValkeyServer, running
from fairlead.transports.rollouts.base import Claim, Sending, TrainerQueue, WorkerQueue
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from fairlead.transports.rollouts.redis_worker import RedisWorkerQueue
from fairlead.types import (
    Completion,
    DeadLetter,
    FinishReason,
    PromptTask,
    Rollout,
    SamplingParams,
    VersionSpan,
    WeightVersion,
)
from tests.memory_queue import MemoryBroker

LETTER = DeadLetter("reward_not_finite", "the reward model said nan")
SHORT_LEASE, LONG_LEASE = 0.1, 60.0


def task(task_id: int) -> PromptTask:
    return PromptTask(
        task_id=task_id,
        prompt_token_ids=(1, 2, 3),
        prompt_text="my lamp is late .",
        sampling=SamplingParams(temperature=0.7, seed=task_id, stop_strings=("\n",)),
        min_version=WeightVersion(1, 4),
    )


def rollout(score: float = 0.5) -> tuple[Rollout]:
    version = WeightVersion(1, 4)
    completion = Completion(
        (5, 6),
        (-0.5, -0.25),
        FinishReason.STOP,
        (VersionSpan(version, 0, 2),),
        text="sorry",
        mixed_cache=True,
    )
    return (Rollout(completion, score, "abc", (-0.75, -1.0), True, 0.5, 0.25),)


class Queues(Protocol):
    """One run's queue; workers and trainers are created on demand."""

    async def worker(self, consumer: str, *, lease: float = LONG_LEASE) -> WorkerQueue: ...

    def trainer(self) -> TrainerQueue: ...


class MemoryQueues:
    def __init__(self) -> None:
        self.broker = MemoryBroker(max_failures=3, max_deliveries=4)

    async def worker(self, consumer: str, *, lease: float = LONG_LEASE) -> WorkerQueue:
        self.broker.lease_seconds = lease
        return self.broker.worker(consumer)

    def trainer(self) -> TrainerQueue:
        return self.broker.trainer()


class RedisQueues:
    def __init__(self, server: ValkeyServer, run: str) -> None:
        self.server, self.run = server, run
        self.workers: list[RedisWorkerQueue] = []
        self.trainers: list[RedisTrainerQueue] = []

    def section(self, lease: float) -> QueueSection:
        return QueueSection(redis_url=self.server.url, lease_seconds=lease, max_failures=3, max_deliveries=4)

    async def worker(self, consumer: str, *, lease: float = LONG_LEASE) -> WorkerQueue:
        queue = await RedisWorkerQueue.connect(self.section(lease), run=self.run, consumer=consumer)
        self.workers.append(queue)
        return queue

    def trainer(self) -> TrainerQueue:
        queue = RedisTrainerQueue.connect(self.section(LONG_LEASE), run=self.run)
        self.trainers.append(queue)
        return queue


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with running(tmp_path_factory.mktemp("valkey")) as valkey:
        yield valkey


@pytest.fixture(params=["memory", "redis"])
async def queues(request: pytest.FixtureRequest) -> AsyncIterator[Queues]:
    if request.param == "memory":
        yield MemoryQueues()
        return
    queues = RedisQueues(request.getfixturevalue("server"), run=request.node.name)
    yield queues
    for worker in queues.workers:
        await worker.close()
    for trainer in queues.trainers:
        trainer.close()


def started(queues: Queues, *, incarnation: int = 1, tasks: int = 0) -> TrainerQueue:
    trainer = queues.trainer()
    trainer.take_fence(incarnation)
    trainer.dispatch([task(number) for number in range(tasks)])
    return trainer


async def claim_one(queue: WorkerQueue) -> Claim:
    claims = await queue.claim(count=1, block_seconds=10)
    assert len(claims) == 1
    return claims[0]


async def test_task_and_rollout_arrive_unchanged(queues: Queues) -> None:
    trainer, worker = started(queues, tasks=1), await queues.worker("w")
    claim = await claim_one(worker)
    assert (claim.task, claim.sending, claim.deliveries, claim.failures) == (task(0), Sending(1, 1), 1, 0)
    assert await worker.finish(claim, rollout())
    [entry] = trainer.read(after="0", count=10, block_seconds=5)
    assert entry.sending == Sending(1, 1)
    outcome = entry.outcome
    assert (outcome.task, outcome.result) == (task(0), rollout())
    assert (outcome.worker, outcome.deliveries, outcome.failures) == ("w", 1, 0)


async def test_tasks_are_claimed_in_order_up_to_count(
    queues: Queues,
) -> None:
    started(queues, tasks=5)
    worker = await queues.worker("w")
    first = await worker.claim(count=2, block_seconds=5)
    rest = await worker.claim(count=10, block_seconds=5)
    assert [claim.task.task_id for claim in first] == [0, 1]
    assert [claim.task.task_id for claim in rest] == [2, 3, 4]
    assert list(await worker.claim(count=10, block_seconds=0)) == []


async def test_only_the_first_finisher_counts(queues: Queues) -> None:
    trainer = started(queues, tasks=1)
    first, second = (
        await queues.worker("first", lease=SHORT_LEASE),
        await queues.worker("second", lease=SHORT_LEASE),
    )
    late = await claim_one(first)
    stolen = await claim_one(second)
    assert (stolen.deliveries, stolen.sending) == (2, late.sending)
    assert await first.finish(late, rollout(1.0))
    assert not await second.finish(stolen, LETTER)
    assert not await first.finish(late, rollout(1.0))
    [entry] = trainer.read(after="0", count=10, block_seconds=0)
    assert entry.outcome.result == rollout(1.0)
    assert trainer.stats().in_flight == 0


async def test_renewed_lease_is_kept_and_lost_one_reported(queues: Queues) -> None:
    started(queues, tasks=2)
    owner, thief = await queues.worker("owner", lease=1.0), await queues.worker("thief", lease=1.0)
    claims = await owner.claim(count=2, block_seconds=5)
    kept, lost = claims
    stolen = await claim_until(thief, lost.task.task_id, keep=(owner, kept))
    assert stolen.deliveries == 2
    assert await owner.renew([kept, lost]) == {lost.entry_id}
    assert await thief.renew([stolen]) == frozenset()


async def claim_until(queue: WorkerQueue, task_id: int, *, keep: tuple[WorkerQueue, Claim]) -> Claim:
    """Claim a task once its lease has expired, while another lease is renewed continuously."""
    for _ in range(1000):
        owner, kept = keep
        assert await owner.renew([kept]) == frozenset()
        for claim in await queue.claim(count=1, block_seconds=0.01):
            assert claim.task.task_id == task_id
            return claim
    raise AssertionError("the lease never ran out")


async def test_new_sending_closes_the_old_one(queues: Queues) -> None:
    trainer, worker = started(queues, tasks=1), await queues.worker("w")
    old = await claim_one(worker)
    trainer.dispatch([task(0)])
    assert await worker.renew([old]) == {old.entry_id}
    assert not await worker.finish(old, rollout())
    assert not await worker.fail(old, LETTER)
    new = await claim_one(worker)
    assert (new.sending, new.task) == (Sending(1, 2), task(0))
    assert await worker.finish(new, rollout())
    assert [entry.sending for entry in trainer.read(after="0", count=10, block_seconds=0)] == [Sending(1, 2)]


async def test_entries_of_closed_sendings_are_not_claimed(queues: Queues) -> None:
    trainer, worker = started(queues, tasks=3), await queues.worker("w")
    trainer.dispatch([task(0), task(1)])
    claims = await worker.claim(count=10, block_seconds=5)
    assert [(claim.task.task_id, claim.sending.number) for claim in claims] == [(2, 1), (0, 2), (1, 2)]
    stats = trainer.stats()
    assert (stats.waiting, stats.in_flight) == (0, 3)


async def test_sending_numbers_continue_after_an_outcome(queues: Queues) -> None:
    trainer, worker = started(queues, tasks=1), await queues.worker("w")
    for number in range(1, 4):
        claim = await claim_one(worker)
        assert claim.sending == Sending(1, number)
        await worker.finish(claim, rollout())
        trainer.delete(trainer.snapshot().outcome_tasks())
        trainer.dispatch([task(0)])


async def test_last_failure_dead_letters(queues: Queues) -> None:
    trainer = started(queues, tasks=1)
    workers = [await queues.worker("a"), await queues.worker("b")]
    for failures in range(2):
        worker = workers[failures % 2]
        claim = await claim_one(worker)
        assert (claim.failures, claim.deliveries) == (failures, failures + 1)
        assert not await worker.fail(claim, LETTER)
        assert not await worker.fail(claim, LETTER), "the same failure reported twice counts once"
    claim = await claim_one(workers[0])
    assert claim.failures == 2
    assert await workers[0].fail(claim, LETTER)
    [entry] = trainer.read(after="0", count=10, block_seconds=0)
    assert entry.outcome.result == LETTER
    assert trainer.snapshot().tasks_under_way() == frozenset()


async def test_former_owner_cannot_fail_a_task(queues: Queues) -> None:
    started(queues, tasks=1)
    former, owner = await queues.worker("f", lease=SHORT_LEASE), await queues.worker("o", lease=SHORT_LEASE)
    old = await claim_one(former)
    claim = await claim_one(owner)
    assert not await former.fail(old, LETTER)
    await former.release([old])
    assert await owner.renew([claim]) == frozenset()


async def test_released_tasks_are_claimable_and_not_counted(queues: Queues) -> None:
    trainer = started(queues, tasks=2)
    leaving, peer = await queues.worker("leaving"), await queues.worker("peer")
    for _ in range(10):
        claims = await leaving.claim(count=2, block_seconds=5)
        await leaving.release(claims)
    again = await peer.claim(count=2, block_seconds=5)
    assert [(claim.task.task_id, claim.deliveries, claim.failures) for claim in again] == [
        (0, 1, 0),
        (1, 1, 0),
    ]
    assert await leaving.renew(claims) == {claim.entry_id for claim in claims}
    assert trainer.read(after="0", count=10, block_seconds=0) == []


async def test_too_many_deliveries_dead_letter(queues: Queues) -> None:
    trainer, worker = started(queues, tasks=1), await queues.worker("w", lease=SHORT_LEASE)
    for deliveries in range(1, 5):
        assert (await claim_one(worker)).deliveries == deliveries
    while not trainer.read(after="0", count=1, block_seconds=0):
        assert await worker.claim(count=1, block_seconds=0.2) == []
    [entry] = trainer.read(after="0", count=10, block_seconds=0)
    assert isinstance(entry.outcome.result, DeadLetter)
    assert entry.outcome.result.reason == "too_many_deliveries"
    assert entry.outcome.deliveries == 5


async def test_read_has_no_side_effects_and_delete_is_final(queues: Queues) -> None:
    trainer, worker = started(queues, tasks=3), await queues.worker("w")
    for claim in await worker.claim(count=3, block_seconds=5):
        await worker.finish(claim, rollout(float(claim.task.task_id)))
    entries = trainer.read(after="0", count=2, block_seconds=0)
    assert [entry.outcome.task.task_id for entry in entries] == [0, 1]
    assert trainer.read(after="0", count=2, block_seconds=0) == entries
    [third] = trainer.read(after=entries[-1].entry_id, count=2, block_seconds=0)
    assert third.outcome.task.task_id == 2
    trainer.delete([entries[0].entry_id, third.entry_id])
    trainer.delete([third.entry_id])
    assert trainer.read(after="0", count=9, block_seconds=0) == entries[1:]
    assert trainer.read(after=third.entry_id, count=9, block_seconds=0.05) == []


async def test_snapshot_shows_tasks_and_outcomes(queues: Queues) -> None:
    trainer, worker = started(queues, tasks=4), await queues.worker("w")
    assert trainer.snapshot().tasks_under_way() == {0, 1, 2, 3}
    claims = await worker.claim(count=2, block_seconds=5)
    assert trainer.snapshot().tasks_under_way() == {0, 1, 2, 3}
    await worker.finish(claims[1], rollout())
    snapshot = trainer.snapshot()
    [entry] = trainer.read(after="0", count=10, block_seconds=0)
    assert snapshot.tasks_under_way() == {0, 2, 3}
    assert snapshot.outcome_tasks() == {entry.entry_id: 1}
    assert snapshot.outcome_bytes > 50
    stats = trainer.stats()
    assert (stats.waiting, stats.in_flight, stats.outcomes) == (2, 1, 1)
    trainer.delete([entry.entry_id])
    assert trainer.snapshot().outcome_tasks() == {}


async def test_newer_trainer_fences_off_the_older(queues: Queues) -> None:
    old, worker = started(queues, incarnation=3, tasks=1), await queues.worker("w")
    await worker.finish(await claim_one(worker), rollout())
    [entry] = old.read(after="0", count=1, block_seconds=0)
    new = queues.trainer()
    assert new.known_incarnation() == 3
    for taken in (2, 3):
        with pytest.raises(Fenced):
            new.take_fence(taken)
    new.take_fence(4)
    new.take_fence(4)
    with pytest.raises(Fenced):
        old.dispatch([task(1)])
    with pytest.raises(Fenced):
        old.delete([entry.entry_id])
    with pytest.raises(Fenced):
        old.take_fence(3)
    snapshot = new.snapshot()
    assert (snapshot.tasks_under_way(), snapshot.outcome_tasks()) == (frozenset(), {entry.entry_id: 0})
    assert new.known_incarnation() == 4


async def test_newer_trainer_replaces_older_sendings(queues: Queues) -> None:
    started(queues, incarnation=1, tasks=1)
    worker = await queues.worker("w")
    old = await claim_one(worker)
    new = started(queues, incarnation=2, tasks=1)
    assert not await worker.finish(old, rollout())
    claim = await claim_one(worker)
    assert claim.sending == Sending(2, 1)
    assert await worker.finish(claim, rollout())
    assert len(new.read(after="0", count=10, block_seconds=0)) == 1


async def test_write_without_fence_raises(queues: Queues) -> None:
    trainer = queues.trainer()
    assert trainer.known_incarnation() == 0
    with pytest.raises(Fenced):
        trainer.dispatch([task(0)])
    assert trainer.snapshot().tasks_under_way() == frozenset()


async def test_prompts_are_trimmed_up_to_the_oldest_pending(queues: Queues) -> None:
    trainer, worker = started(queues, tasks=600), await queues.worker("w")
    claims = await worker.claim(count=600, block_seconds=5)
    assert len(claims) == 600
    for claim in claims[:5]:
        assert await worker.finish(claim, LETTER)
    stats = trainer.stats()
    assert (stats.waiting, stats.in_flight, stats.outcomes) == (0, 595, 5)
    assert trainer.snapshot().tasks_under_way() == set(range(5, 600))


async def test_empty_arguments_change_nothing(queues: Queues) -> None:
    trainer, worker = started(queues), await queues.worker("w")
    assert await worker.renew([]) == frozenset()
    await worker.release([])
    trainer.dispatch([])
    trainer.delete([])
    assert list(await worker.claim(count=1, block_seconds=0.02)) == []
