"""A hypothesis state machine drives the Redis queue on a real Valkey against a small model.

The model knows one thing per task (its open sending) and one per prompt entry (who holds it, how often it was
delivered). Everything that can happen to a run happens: late finishers, stolen leases, crashed workers, two
trainers, races between finishing and dead-lettering, and a Redis that loses entries, keys or its group, or
brings entries back. At the end of every example the trainer reconciles and one healthy worker goes on: then
every task must have come through.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fairlead.config.queue import QueueSection
from fairlead.errors import Fenced
from fairlead.local.valkey import ValkeyServer, running
from fairlead.transports.rollouts.base import Claim, OutcomeEntry, Sending
from fairlead.transports.rollouts.keys import GROUP, Keys
from fairlead.transports.rollouts.redis import RedisTrainerQueue, RedisWorkerQueue
from fairlead.types import DeadLetter, PromptTask, SamplingParams, WeightVersion

LETTER = DeadLetter("reward_not_finite", "the reward model said nan")
NUM_TASKS, MAX_FAILURES, MAX_DELIVERIES = 5, 3, 4
LONG_AGO_MS = 10_000_000
WORKERS = ("a", "b", "c")

task_ids = st.integers(0, NUM_TASKS - 1)
picks = st.integers(0, 10_000)
workers = st.sampled_from(WORKERS)
recent = st.one_of(st.integers(0, 3), picks)
LOSSES = (
    "a_prompt",
    "a_prompt_for_a_moment",
    "a_consumer",
    "an_outcome",
    "the_prompts",
    "the_rollouts",
    "the_outstanding",
    "the_fence",
    "the_group",
    "the_scripts",
)


def prompt(task_id: int) -> PromptTask:
    return PromptTask(task_id, (1, 2), "hello", SamplingParams(seed=task_id), WeightVersion(1, 0))


def order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)


@dataclass
class Open:
    """The open sending of a task, as the hash has it."""

    sending: Sending
    entry: str
    failures: int = 0


@dataclass
class Entry:
    """An entry of the prompts stream."""

    task: int
    sending: Sending
    present: bool = True
    delivered: bool = False
    acknowledged: bool = False
    owner: str | None = None
    expired: bool = False
    deliveries: int = 0


@dataclass
class Model:
    """What the queue should hold."""

    open: dict[int, Open] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    fence: int = 0

    def is_open(self, claim: Claim) -> bool:
        found = self.open.get(claim.task.task_id)
        return found is not None and (found.sending, found.entry) == (claim.sending, claim.entry_id)

    def acknowledge(self, entry_id: str) -> None:
        entry = self.entries.get(entry_id)
        if entry is not None and entry.owner is not None:
            entry.owner, entry.acknowledged = None, True

    def close(self, claim: Claim) -> None:
        del self.open[claim.task.task_id]
        self.acknowledge(claim.entry_id)

    def claimable(self) -> list[str]:
        """Entries in the order in which they are claimed: leases that ran out, then new ones."""
        ordered = sorted(self.entries, key=order)
        expired = [name for name in ordered if self.entries[name].owner and self.entries[name].expired]
        fresh = [name for name in ordered if self.entries[name].present and not self.entries[name].delivered]
        return expired + fresh

    def claim(self, worker: str, count: int) -> list[tuple[int, Sending, int, int]]:
        """(task, sending, deliveries, failures) of what a claim takes, those delivered too often included."""
        taken: list[tuple[int, Sending, int, int]] = []
        for name in self.claimable():
            if len(taken) == count:
                break
            entry = self.entries[name]
            if not entry.present:
                entry.owner = None
                continue
            entry.delivered, entry.owner, entry.expired = True, worker, False
            entry.deliveries += 1
            found = self.open.get(entry.task)
            if found is None or found.entry != name:
                self.acknowledge(name)
                continue
            taken.append((entry.task, entry.sending, entry.deliveries, found.failures))
        return taken


class QueueMachine(RuleBasedStateMachine):
    """Set `server` before running it."""

    server: ValkeyServer
    runs = itertools.count()

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        name = f"states-{next(self.runs)}"
        self.keys = Keys(name)
        self.name = name
        self.section = QueueSection(
            redis_url=self.server.url,
            lease_seconds=600,
            max_failures=MAX_FAILURES,
            max_deliveries=MAX_DELIVERIES,
        )
        self.raw = redis.Redis.from_url(self.server.url, protocol=2)
        self.model = Model()
        self.queues: dict[str, RedisWorkerQueue] = {}
        for worker in WORKERS:
            self.start_worker(worker)
        self.claims: list[tuple[str, Claim]] = []
        self.trainers: list[tuple[int, RedisTrainerQueue]] = []
        self.lost_prompts: list[dict[bytes, bytes]] = []
        self.lost_outcomes: list[dict[bytes, bytes]] = []
        self.sent: set[int] = set()
        self.settled: set[int] = set()
        self.appended: dict[tuple[int, Sending], str] = {}
        self.injected: set[str] = set()
        self.last_outcome = "0"
        self.new_trainer()

    def start_worker(self, worker: str) -> None:
        connecting = RedisWorkerQueue.connect(self.section, run=self.name, consumer=worker)
        self.queues[worker] = self.loop.run_until_complete(connecting)

    # The trainers.

    @rule()
    @precondition(lambda self: len(self.trainers) < 4)
    def new_trainer(self) -> None:
        trainer = RedisTrainerQueue.connect(self.section, run=self.name)
        assert trainer.known_incarnation() == self.model.fence
        incarnation = 1 + max([self.model.fence, *(number for number, _ in self.trainers)])
        trainer.take_fence(incarnation)
        self.model.fence = incarnation
        self.trainers.append((incarnation, trainer))

    def writes(self, pick: int) -> tuple[int, RedisTrainerQueue, bool]:
        """One of the trainers, and whether it may write now."""
        incarnation, trainer = self.trainers[-1 - pick // 3 % len(self.trainers)]
        may = incarnation >= self.model.fence
        if may:
            self.model.fence = incarnation
        return incarnation, trainer, may

    def content(self) -> list[bytes | None]:
        return [self.raw.dump(key) for key in self.keys.all()]

    @rule(pick=recent, tasks=st.lists(task_ids, min_size=1, max_size=4))
    def dispatch(self, pick: int, tasks: list[int]) -> None:
        incarnation, trainer, may = self.writes(pick)
        if not may:
            before = self.content()
            with pytest.raises(Fenced):
                trainer.dispatch([prompt(task) for task in tasks])
            assert self.content() == before
            return
        trainer.dispatch([prompt(task) for task in tasks])
        self.note_sendings(incarnation, tasks)

    def note_sendings(self, incarnation: int, tasks: list[int]) -> None:
        """The new entries are the last ones of the stream; each is a sending with a number of its own."""
        entries = self.raw.xrevrange(self.keys.prompts, count=len(tasks))[::-1]
        for task, (entry_id, fields) in zip(tasks, entries, strict=True):
            sending = Sending(int(fields[b"incarnation"]), int(fields[b"number"]))
            assert int(fields[b"task"]) == task
            assert sending.incarnation == incarnation
            assert all(
                (entry.task, entry.sending) != (task, sending) for entry in self.model.entries.values()
            )
            self.model.open[task] = Open(sending, entry_id.decode())
            self.model.entries[entry_id.decode()] = Entry(task, sending)
            self.sent.add(task)

    @rule(pick=picks)
    def delete_settled(self, pick: int) -> None:
        _, trainer, may = self.writes(pick)
        outcomes = trainer.survey().outcomes
        settled = [name for name, task in outcomes.items() if task in self.settled] or ["1-1"]
        if not may:
            before = self.content()
            with pytest.raises(Fenced):
                trainer.delete(settled)
            assert self.content() == before
        else:
            trainer.delete(settled)
            assert not set(settled) & set(trainer.survey().outcomes)

    @rule(from_the_head=st.booleans())
    def read(self, from_the_head: bool) -> None:
        _, trainer = self.trainers[-1]
        if from_the_head:
            self.last_outcome = "0"
        for entry in trainer.read(after=self.last_outcome, count=100, block_seconds=0):
            self.settle(entry)
            self.last_outcome = entry.entry_id

    def settle(self, entry: OutcomeEntry) -> None:
        self.settled.add(entry.outcome.task.task_id)

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
        got = [(c.task.task_id, c.sending, c.deliveries, c.failures) for c in claims]
        assert got == [claim for claim in expected if claim[2] <= MAX_DELIVERIES]
        for task, _, deliveries, _ in expected:
            if deliveries > MAX_DELIVERIES:
                entry_id = self.model.open.pop(task).entry
                self.model.acknowledge(entry_id)
        self.claims += [(worker, claim) for claim in claims]

    def pick(self, number: int) -> tuple[str, Claim]:
        return self.claims[-1 - number % len(self.claims)]

    @rule(number=recent, dies=st.booleans())
    @precondition(lambda self: self.claims)
    def finish(self, number: int, dies: bool) -> None:
        """Any claim that ever was may be finished, by whoever had it, however late."""
        worker, claim = self.pick(number)
        score = LETTER if dies else DeadLetter("other", "a race")
        finished = self.loop.run_until_complete(self.queues[worker].finish(claim, score))
        assert finished == self.model.is_open(claim)
        if finished:
            self.model.close(claim)
        else:
            self.model.acknowledge(claim.entry_id)

    @rule(number=recent)
    @precondition(lambda self: self.claims)
    def fail(self, number: int) -> None:
        worker, claim = self.pick(number)
        dead = self.loop.run_until_complete(self.queues[worker].fail(claim, LETTER))
        if not self.model.is_open(claim):
            assert not dead
            self.model.acknowledge(claim.entry_id)
            return
        entry, found = self.model.entries[claim.entry_id], self.model.open[claim.task.task_id]
        if entry.owner != worker:
            assert not dead
            return
        found.failures += 1
        assert dead == (found.failures >= MAX_FAILURES)
        if dead:
            self.model.close(claim)
        else:
            entry.owner, entry.expired = ("returned", True) if entry.present else (None, False)

    @rule(number=recent)
    @precondition(lambda self: self.claims)
    def release(self, number: int) -> None:
        worker, claim = self.pick(number)
        self.loop.run_until_complete(self.queues[worker].release([claim]))
        entry = self.model.entries[claim.entry_id]
        if entry.owner == worker:
            entry.deliveries = max(0, entry.deliveries - 1)
            entry.owner, entry.expired = ("returned", True) if entry.present else (None, False)

    @rule(number=recent)
    @precondition(lambda self: self.claims)
    def renew(self, number: int) -> None:
        worker, claim = self.pick(number)
        lost = self.loop.run_until_complete(self.queues[worker].renew([claim]))
        entry = self.model.entries[claim.entry_id]
        kept = self.model.is_open(claim) and entry.owner == worker and entry.present
        assert lost == (frozenset() if kept else {claim.entry_id})
        if kept:
            entry.expired = False
        elif not self.model.is_open(claim):
            self.model.acknowledge(claim.entry_id)
        elif entry.owner == worker:
            entry.owner = None

    @rule(worker=workers)
    def crash(self, worker: str) -> None:
        """Its consumer stays while it holds something; its leases run out."""
        self.loop.run_until_complete(self.queues[worker].close())
        held = [name for name, entry in self.model.entries.items() if entry.owner == worker]
        consumers = {info["name"].decode() for info in self.raw.xinfo_consumers(self.keys.prompts, GROUP)}
        assert (worker in consumers) == bool(held)
        for name in held:
            self.lease_of(name)
        self.start_worker(worker)

    @rule(number=picks)
    def lease_runs_out(self, number: int) -> None:
        held = [name for name, entry in self.model.entries.items() if entry.owner]
        if held:
            self.lease_of(held[number % len(held)])

    def lease_of(self, name: str) -> None:
        """Time passes: the entry looks as if it was not renewed for long. One that is gone is dropped."""
        entry = self.model.entries[name]
        self.raw.xclaim(self.keys.prompts, GROUP, entry.owner, 0, [name], idle=LONG_AGO_MS, justid=True)
        entry.owner, entry.expired = (entry.owner, True) if entry.present else (None, False)

    # What Redis forgets and brings back.

    @rule(what=st.sampled_from(LOSSES), number=picks)
    def redis_loses(self, what: str, number: int) -> None:
        getattr(self, f"lose_{what}")(number)

    def lose_a_prompt(self, number: int) -> None:
        entries = self.raw.xrange(self.keys.prompts)
        if entries:
            entry_id, fields = entries[number % len(entries)]
            self.raw.xdel(self.keys.prompts, entry_id)
            self.lost_prompts.append(fields)
            self.model.entries[entry_id.decode()].present = False

    def lose_a_prompt_for_a_moment(self, number: int) -> None:
        before = len(self.lost_prompts)
        self.lose_a_prompt(number)
        if len(self.lost_prompts) > before:
            self.redis_brings_a_prompt_back(before)

    def lose_a_consumer(self, number: int) -> None:
        """What it held is neither pending nor new any more: nobody will ever claim it."""
        if self.raw.exists(self.keys.prompts):
            worker = WORKERS[number % len(WORKERS)]
            self.raw.xgroup_delconsumer(self.keys.prompts, GROUP, worker)
            for entry in self.model.entries.values():
                if entry.owner == worker:
                    entry.owner = None

    def lose_an_outcome(self, number: int) -> None:
        entries = self.raw.xrange(self.keys.rollouts)
        if entries:
            entry_id, fields = entries[number % len(entries)]
            self.raw.xdel(self.keys.rollouts, entry_id)
            self.lost_outcomes.append(fields)

    def lose_the_prompts(self, _: int) -> None:
        self.raw.delete(self.keys.prompts)
        for entry in self.model.entries.values():
            entry.present, entry.owner = False, None

    def lose_the_rollouts(self, _: int) -> None:
        self.raw.delete(self.keys.rollouts)

    def lose_the_outstanding(self, _: int) -> None:
        self.raw.delete(self.keys.outstanding)
        self.model.open.clear()

    def lose_the_fence(self, _: int) -> None:
        self.raw.delete(self.keys.fence)
        self.model.fence = 0

    def lose_the_group(self, _: int) -> None:
        if self.raw.exists(self.keys.prompts):
            self.raw.xgroup_destroy(self.keys.prompts, GROUP)
        for name, _fields in self.raw.xrange(self.keys.prompts):
            entry = self.model.entries[name.decode()]
            entry.delivered, entry.deliveries = False, 0
        for entry in self.model.entries.values():
            entry.owner = None

    def lose_the_scripts(self, _: int) -> None:
        self.raw.script_flush()

    @rule(number=picks)
    @precondition(lambda self: self.lost_prompts)
    def redis_brings_a_prompt_back(self, number: int) -> None:
        fields = self.lost_prompts[number % len(self.lost_prompts)]
        entry_id = self.raw.xadd(self.keys.prompts, fields).decode()
        sending = Sending(int(fields[b"incarnation"]), int(fields[b"number"]))
        self.model.entries[entry_id] = Entry(int(fields[b"task"]), sending)

    @rule(number=picks)
    @precondition(lambda self: self.lost_outcomes)
    def redis_brings_an_outcome_back(self, number: int) -> None:
        fields = self.lost_outcomes[number % len(self.lost_outcomes)]
        self.injected.add(self.raw.xadd(self.keys.rollouts, fields).decode())

    # What must hold.

    @invariant()
    def the_survey_agrees_with_the_model(self) -> None:
        if not hasattr(self, "trainers"):
            return
        survey = self.trainers[-1][1].survey()
        claimable = {
            task
            for task, found in self.model.open.items()
            if (entry := self.model.entries[found.entry]).present and (entry.owner or not entry.delivered)
        }
        assert survey.prompts == claimable
        entries = self.raw.xrange(self.keys.rollouts)
        assert survey.outcomes == {name.decode(): int(fields[b"task"]) for name, fields in entries}
        assert survey.outcome_bytes == sum(len(fields[b"outcome"]) for _, fields in entries)

    @invariant()
    def a_sending_has_one_outcome_at_most(self) -> None:
        if not hasattr(self, "trainers"):
            return
        for name, fields in self.raw.xrange(self.keys.rollouts):
            if name.decode() not in self.injected:
                sending = Sending(int(fields[b"incarnation"]), int(fields[b"number"]))
                first = self.appended.setdefault((int(fields[b"task"]), sending), name.decode())
                assert first == name.decode()

    @invariant()
    def the_hash_agrees_with_the_model(self) -> None:
        if not hasattr(self, "trainers"):
            return
        stored = {int(k): v.decode() for k, v in self.raw.hgetall(self.keys.outstanding).items()}
        assert stored == {
            task: f"{found.sending.incarnation}:{found.sending.number}:{found.failures}:{found.entry}"
            for task, found in self.model.open.items()
        }

    def teardown(self) -> None:
        """The trainer reconciles, a healthy worker goes on: every task comes through."""
        try:
            self.come_through()
        finally:
            self.leave()

    def come_through(self) -> None:
        self.new_trainer()
        incarnation, trainer = self.trainers[-1]
        self.last_outcome = "0"
        self.read(from_the_head=False)
        survey = trainer.survey()
        missing = self.sent - self.settled - survey.prompts - set(survey.outcomes.values())
        if missing:
            trainer.dispatch([prompt(task) for task in sorted(missing)])
            self.note_sendings(incarnation, sorted(missing))
        for name, entry in self.model.entries.items():
            if entry.owner:
                self.lease_of(name)
        while True:
            before = len(self.claims)
            self.claim("a", 100)
            if len(self.claims) == before:
                break
            for number in range(len(self.claims) - before):
                self.finish(number, dies=False)
                self.the_hash_agrees_with_the_model()
                self.the_survey_agrees_with_the_model()
        self.read(from_the_head=False)
        assert self.sent <= self.settled
        assert self.raw.xpending(self.keys.prompts, GROUP)["pending"] == 0
        assert self.raw.xlen(self.keys.prompts) <= 1

    def leave(self) -> None:
        for queue in self.queues.values():
            self.loop.run_until_complete(queue.close())
        for _, trainer in self.trainers:
            trainer.close()
        self.raw.delete(*self.keys.all())
        self.raw.close()
        self.loop.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with running(tmp_path_factory.mktemp("valkey")) as valkey:
        yield valkey


def drive(server: ValkeyServer, *, examples: int, steps: int, derandomize: bool) -> None:
    machine = type("Machine", (QueueMachine,), {"server": server})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=derandomize,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_queue_keeps_its_rules_whatever_happens(server: ValkeyServer) -> None:
    drive(server, examples=60, steps=40, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_queue_keeps_its_rules_whatever_happens_for_long(server: ValkeyServer) -> None:
    drive(server, examples=1500, steps=80, derandomize=False)
