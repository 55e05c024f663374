"""A hypothesis state machine that drives a queue against a small model; the same for every transport.

Here are trainers and workers: late finishers, repeated calls, several trainers, races between finishing and
dead-lettering; what befalls them and the queue stands in `queue_mishaps`. After every step the invariants of
docs/queue-protocol.md hold; at the end of every example the trainer reconciles and one healthy worker goes
on: then every task must have come through.
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
    """Set `make_world` before running it."""

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
        # Nothing may be missing until the queue has lost something.
        self.sound = True
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
        trainer.take_fence(incarnation)  # its answer was lost
        self.model.fence = incarnation
        self.trainers.append((incarnation, trainer))

    def writes(self, pick: int) -> tuple[int, TrainerQueue, bool]:
        """One of the trainers, and whether it may write now."""
        incarnation, trainer = self.trainers[-1 - pick // 3 % len(self.trainers)]
        may = incarnation >= self.model.fence
        if may:
            self.model.fence = incarnation
        return incarnation, trainer, may

    def refused(self, write: Callable[[], None]) -> None:
        """An older trainer's write changes nothing."""
        before = self.world.content()
        with pytest.raises(Fenced):
            write()
        assert self.world.content() == before

    @rule(pick=recent, tasks=st.lists(task_ids, min_size=1, max_size=4))
    def dispatch(self, pick: int, tasks: list[int]) -> None:
        incarnation, trainer, may = self.writes(pick)
        if not may:
            self.refused(lambda: trainer.dispatch([prompt(task) for task in tasks]))
            return
        trainer.dispatch([prompt(task) for task in tasks])
        self.note_sendings(incarnation, tasks)

    def note_sendings(self, incarnation: int, tasks: Sequence[int]) -> None:
        """The new entries are the last ones of the stream; each is a sending with a number of its own."""
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
        _, trainer, may = self.writes(pick)
        outcomes = trainer.snapshot().outcome_tasks()
        settled = [name for name, task in outcomes.items() if task in self.settled] or [self.world.nowhere]
        if not may:
            self.refused(lambda: trainer.delete(settled))
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
        """An outcome settles its task, unless it says that the entry was damaged on its way."""
        task, result = entry.outcome.task.task_id, entry.outcome.result
        if isinstance(result, DeadLetter) and result.reason == base.UNDECODABLE and self.damaged[task] < 3:
            self.damaged[task] += 1
            self.send_again(entry.entry_id, task)
        else:
            self.settled.add(task)

    def send_again(self, outcome: str, task: int) -> None:
        """The newest trainer deletes an outcome that cannot count, and sends its task if nothing is left."""
        incarnation, trainer = self.trainers[-1]
        self.model.fence = incarnation
        trainer.delete([outcome])
        snapshot = trainer.snapshot()
        if task not in self.settled | snapshot.tasks_present():
            trainer.dispatch([prompt(task)])
            self.note_sendings(incarnation, [task])

    # The workers.

    @rule(worker=workers, fails=st.integers(1, MAX_FAILURES))
    def fail_again_and_again(self, worker: str, fails: int) -> None:
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
        """Any claim that ever was may be finished, by whoever had it, however late and again."""
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

    def lease_of(self, name: str) -> None:
        """Time passes: the entry looks as if it was not renewed for long. One that is gone is dropped."""
        self.world.age(name, self.model.entries[name].owner or "", milliseconds=LONG_AGO_MS)
        self.model.runs_out(name)

    # What must hold.

    @invariant()
    def the_queue_holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "sound"):
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
    def a_sending_has_one_outcome_at_most(self) -> None:
        for entry, task, sending, _ in self.world.outcomes() if hasattr(self, "sound") else ():
            if entry not in self.injected:
                assert self.appended.setdefault((task, sending), entry) == entry

    @invariant()
    def nothing_is_missing_unless_something_was_lost(self) -> None:
        if getattr(self, "sound", False):
            snapshot = self.trainers[-1][1].snapshot()
            assert self.sent <= self.settled | snapshot.tasks_present()

    @invariant()
    def the_fence_is_that_of_the_newest_trainer_that_wrote(self) -> None:
        if hasattr(self, "sound"):
            assert self.trainers[-1][1].known_incarnation() == self.model.fence

    def teardown(self) -> None:
        """The trainer reconciles, a healthy worker goes on: every task comes through."""
        try:
            self.come_through()
        finally:
            for queue in self.queues.values():
                self.loop.run_until_complete(queue.close())
            self.world.close()
            self.loop.close()

    def come_through(self) -> None:
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
                self.lease_of(name)
        finished = False
        while True:
            before, sent = len(self.claims), len(self.model.entries)
            self.claim("a", 100)
            for number in range(len(self.claims) - before):
                finished = True
                self.finish(number, dies=False)
                self.the_queue_holds_what_the_model_holds()
            self.read(from_the_head=False)
            if (len(self.claims), len(self.model.entries)) == (before, sent):
                break
        assert self.sent <= self.settled
        assert self.world.open().keys() <= self.settled
        assert not finished or len(self.world.prompts()) <= 1
