"""A hypothesis state machine that drives a queue against a small model; the same for every transport.

Contains trainers and workers: late finishers, repeated calls, several trainers, races between finishing and
dead-lettering. The faults are in `queue_mishaps`. After every step the invariants of docs/queue-protocol.md
must hold; at the end of every example the trainer reconciles and one healthy worker runs, and every task must
be settled.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fairlead.errors import CorruptOutcome, Fenced
from fairlead.transports.rollouts import base
from fairlead.transports.rollouts.base import Claim, OutcomeEntry, Sending, TrainerQueue, WorkerQueue
from fairlead.types import DeadLetter, PromptTask, SamplingParams, WeightVersion
from tests.contract.queue_model import Entry, Model, Open
from tests.contract.queue_worlds import LONG_AGO_MS, MAX_DELIVERIES, MAX_FAILURES, World

LETTER = DeadLetter("reward_not_finite", "the reward model said nan")
NUM_TASKS = 5
WORKERS = ("a", "b", "c")

task_ids = st.integers(0, NUM_TASKS - 1)
picks = st.integers(0, 10_000)
workers = st.sampled_from(WORKERS)
recent = st.one_of(st.integers(0, 3), picks)


def prompt(task_id: int) -> PromptTask:
    return PromptTask(task_id, (1, 2), "hello", SamplingParams(seed=task_id), WeightVersion(1, 0))


class QueueMachine(RuleBasedStateMachine):
    """The machine; a subclass sets `make_world`."""

    make_world: ClassVar[Callable[[], World]]

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.world = type(self).make_world()
        self.model = Model()
        self.queues: dict[str, WorkerQueue] = {}
        for worker in WORKERS:
            self.start_worker(worker)
        self.claims: list[tuple[str, Claim]] = []
        self.trainers: list[tuple[int, TrainerQueue]] = []
        self.sent: set[int] = set()
        self.settled: set[int] = set()
        self.damaged = Counter[int]()
        self.appended: dict[tuple[int, Sending], str] = {}
        self.injected: set[str] = set()
        self.broken: set[str] = set()
        self.last_outcome = "0"
        # True until the queue has lost something; until then nothing may be missing.
        self.intact = True
        self.new_trainer()

    def start_worker(self, worker: str) -> None:
        self.queues[worker] = self.loop.run_until_complete(self.world.worker(worker))

    # The trainers.

    @rule()
    @precondition(lambda self: len(self.trainers) < 4)
    def new_trainer(self) -> None:
        trainer = self.world.trainer()
        assert trainer.known_incarnation() == self.model.fence
        incarnation = 1 + max([self.model.fence, *(number for number, _ in self.trainers)])
        trainer.take_fence(incarnation)
        trainer.take_fence(incarnation)  # repeated because the reply was lost
        self.model.fence = incarnation
        self.trainers.append((incarnation, trainer))

    def pick_trainer(self, pick: int) -> tuple[int, TrainerQueue, bool]:
        """Pick a trainer; return it and whether it may write now."""
        incarnation, trainer = self.trainers[-1 - pick // 3 % len(self.trainers)]
        may_write = incarnation >= self.model.fence
        if may_write:
            self.model.fence = incarnation
        return incarnation, trainer, may_write

    def check_fenced(self, write: Callable[[], None]) -> None:
        """Check that a write of a fenced-off trainer changes nothing."""
        before = self.world.content()
        with pytest.raises(Fenced):
            write()
        assert self.world.content() == before

    @rule(pick=recent, tasks=st.lists(task_ids, min_size=1, max_size=4))
    def dispatch(self, pick: int, tasks: list[int]) -> None:
        incarnation, trainer, may_write = self.pick_trainer(pick)
        if not may_write:
            self.check_fenced(lambda: trainer.dispatch([prompt(task) for task in tasks]))
            return
        trainer.dispatch([prompt(task) for task in tasks])
        self.note_sendings(incarnation, tasks)

    def note_sendings(self, incarnation: int, tasks: Sequence[int]) -> None:
        """Record new sendings: the last entries of the stream, each with a number that was never used."""
        for task, (entry, found, sending) in zip(tasks, self.world.prompts()[-len(tasks) :], strict=True):
            assert (found, sending.incarnation) == (task, incarnation)
            assert all(
                (known.task, known.sending) != (task, sending) for known in self.model.entries.values()
            )
            self.model.open[task] = Open(sending, entry)
            self.model.entries[entry] = Entry(task, sending)
            self.sent.add(task)
            self.settled.discard(task)

    @rule(pick=picks)
    def delete_settled(self, pick: int) -> None:
        _, trainer, may_write = self.pick_trainer(pick)
        outcomes = trainer.snapshot().outcome_tasks()
        settled = [name for name, task in outcomes.items() if task in self.settled] or [self.world.nowhere]
        if not may_write:
            self.check_fenced(lambda: trainer.delete(settled))
        else:
            trainer.delete(settled)
            assert not set(settled) & set(trainer.snapshot().outcome_tasks())

    @rule(from_the_head=st.booleans())
    def read(self, from_the_head: bool) -> None:
        _, trainer = self.trainers[-1]
        if from_the_head:
            self.last_outcome = "0"
        while True:
            try:
                entries = trainer.read(after=self.last_outcome, count=100, block_seconds=0)
            except CorruptOutcome as error:
                assert error.entry_id in self.broken
                self.last_outcome = error.entry_id
                self.send_again(error.entry_id, trainer.snapshot().outcome_tasks()[error.entry_id])
                continue
            if not entries:
                return
            for entry in entries:
                assert entry.entry_id not in self.broken
                self.last_outcome = entry.entry_id
                self.settle(entry)

    def settle(self, entry: OutcomeEntry) -> None:
        """Settle the task of an outcome, unless the outcome reports a damaged entry."""
        task, result = entry.outcome.task.task_id, entry.outcome.result
        if isinstance(result, DeadLetter) and result.reason == base.UNDECODABLE and self.damaged[task] < 3:
            self.damaged[task] += 1
            self.send_again(entry.entry_id, task)
        else:
            self.settled.add(task)

    def send_again(self, outcome: str, task: int) -> None:
        """Delete an outcome that cannot count, and send its task again if nothing else of it is present."""
        incarnation, trainer = self.trainers[-1]
        self.model.fence = incarnation
        trainer.delete([outcome])
        snapshot = trainer.snapshot()
        if task not in self.settled | snapshot.tasks_present():
            trainer.dispatch([prompt(task)])
            self.note_sendings(incarnation, [task])

    # The workers.

    @rule(worker=workers, fails=st.integers(1, MAX_FAILURES))
    def fail_repeatedly(self, worker: str, fails: int) -> None:
        for _ in range(fails):
            before = len(self.claims)
            self.claim(worker, 1)
            if len(self.claims) > before:
                self.fail(0)

    @rule(worker=workers, count=st.integers(1, 4))
    def claim(self, worker: str, count: int) -> None:
        claims = self.loop.run_until_complete(self.queues[worker].claim(count=count, block_seconds=0))
        expected = self.model.claim(worker, count)
        got = [(c.task.task_id, c.sending, c.deliveries, c.failures, False) for c in claims]
        assert got == [claim for claim in expected if claim[2] <= MAX_DELIVERIES and not claim[4]]
        for task, _, deliveries, _, damaged in expected:
            if damaged or deliveries > MAX_DELIVERIES:
                self.model.acknowledge(self.model.open.pop(task).entry)
        self.claims += [(worker, claim) for claim in claims]

    def pick(self, number: int) -> tuple[str, Claim]:
        return self.claims[-1 - number % len(self.claims)]

    @rule(number=recent, dies=st.booleans(), repeated=st.booleans())
    @precondition(lambda self: self.claims)
    def finish(self, number: int, dies: bool, repeated: bool = False) -> None:
        """Finish any earlier claim, by the worker that held it, however late and perhaps twice."""
        worker, claim = self.pick(number)
        letter = LETTER if dies else DeadLetter("other", "a race")
        for _ in range(1 + repeated):
            finished = self.loop.run_until_complete(self.queues[worker].finish(claim, letter))
            assert finished == self.model.finish(claim)

    @rule(number=recent)
    @precondition(lambda self: self.claims)
    def fail(self, number: int) -> None:
        worker, claim = self.pick(number)
        dead = self.loop.run_until_complete(self.queues[worker].fail(claim, LETTER))
        assert dead == self.model.fail(worker, claim, limit=MAX_FAILURES)

    @rule(number=recent)
    @precondition(lambda self: self.claims)
    def release(self, number: int) -> None:
        worker, claim = self.pick(number)
        self.loop.run_until_complete(self.queues[worker].release([claim]))
        self.model.release(worker, claim)

    @rule(number=recent)
    @precondition(lambda self: self.claims)
    def renew(self, number: int) -> None:
        worker, claim = self.pick(number)
        lost = self.loop.run_until_complete(self.queues[worker].renew([claim]))
        kept = self.model.renew(worker, claim)
        assert lost == (frozenset() if kept else {claim.entry_id})

    def expire(self, name: str) -> None:
        """Expire a lease: the entry looks as if it was not renewed for long. A deleted entry is dropped."""
        self.world.age(name, self.model.entries[name].owner or "", milliseconds=LONG_AGO_MS)
        self.model.expire(name)

    # What must hold.

    @invariant()
    def content_matches_model(self) -> None:
        if not hasattr(self, "intact"):
            return
        stored = {
            task: (found.sending.incarnation, found.sending.number, found.failures, found.entry)
            for task, found in self.model.open.items()
        }
        assert self.world.open() == stored
        snapshot, outcomes = self.trainers[-1][1].snapshot(), self.world.outcomes()
        assert snapshot.tasks_under_way() == self.model.present()
        assert snapshot.outcome_tasks() == {entry: task for entry, task, _, _ in outcomes}
        assert snapshot.outcome_bytes == sum(size for _, _, _, size in outcomes)

    @invariant()
    def at_most_one_outcome_per_sending(self) -> None:
        for entry, task, sending, _ in self.world.outcomes() if hasattr(self, "intact") else ():
            if entry not in self.injected:
                assert self.appended.setdefault((task, sending), entry) == entry

    @invariant()
    def no_task_is_missing_while_intact(self) -> None:
        if getattr(self, "intact", False):
            snapshot = self.trainers[-1][1].snapshot()
            assert self.sent <= self.settled | snapshot.tasks_present()

    @invariant()
    def fence_belongs_to_newest_writer(self) -> None:
        if hasattr(self, "intact"):
            assert self.trainers[-1][1].known_incarnation() == self.model.fence

    def teardown(self) -> None:
        """Reconcile, run one healthy worker, and check that every task is settled."""
        try:
            self.settle_all()
        finally:
            for queue in self.queues.values():
                self.loop.run_until_complete(queue.close())
            self.world.close()
            self.loop.close()

    def settle_all(self) -> None:
        self.new_trainer()
        incarnation, trainer = self.trainers[-1]
        self.read(from_the_head=True)
        snapshot = trainer.snapshot()
        missing = self.sent - self.settled - snapshot.tasks_present()
        if missing:
            trainer.dispatch([prompt(task) for task in sorted(missing)])
            self.note_sendings(incarnation, sorted(missing))
        for name, entry in self.model.entries.items():
            if entry.owner:
                self.expire(name)
        finished = False
        while True:
            before, sent = len(self.claims), len(self.model.entries)
            self.claim("a", 100)
            for number in range(len(self.claims) - before):
                finished = True
                self.finish(number, dies=False)
                self.content_matches_model()
            self.read(from_the_head=False)
            if (len(self.claims), len(self.model.entries)) == (before, sent):
                break
        assert self.sent <= self.settled
        assert self.world.open().keys() <= self.settled
        assert not finished or len(self.world.prompts()) <= 1
