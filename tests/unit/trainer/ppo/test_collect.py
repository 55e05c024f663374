"""The collector against the memory queue: what is sent, what counts, what is dropped, what is reported."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fairlead.config.infrastructure import QueueSection
from fairlead.errors import CorruptOutcome, Fenced, QueueUnavailable, Stalled
from fairlead.transports.rollouts.base import Claim
from fairlead.transports.weights.base import Ancestor
from fairlead.types import (
    Completion,
    DeadLetter,
    FinishReason,
    Outcome,
    PromptTask,
    Rollout,
    SamplingParams,
    TaskResult,
    VersionSpan,
    WeightVersion,
)
from tests.memory_queue import MemoryBroker
from trainer.ppo.admission import checked
from trainer.ppo.collect import Collector
from trainer.ppo.progress import Ledger
from trainer.ppo.task_records import EventLog, Journal, TaskRecords

# Incarnation 1 got to about update 9; incarnation 3 resumed from its checkpoint of update 5.
LINEAGE = (Ancestor(1, 0), Ancestor(3, 5))
HERE = WeightVersion(3, 5)


def task(
    task_id: int, *, version: WeightVersion = HERE, prompt: tuple[int, ...] = (1, 4), samples: int = 1
) -> PromptTask:
    sampling = SamplingParams(seed=task_id, max_new_tokens=4)
    return PromptTask(task_id, prompt, "w0", sampling, version, num_samples=samples)


def rollout(
    *versions: WeightVersion, reference: tuple[float, ...] | None = None, score: float = 1.0
) -> tuple[Rollout, ...]:
    length = len(versions)
    spans = tuple(VersionSpan(version, index, index + 1) for index, version in enumerate(versions))
    completion = Completion((5,) * length, (-1.0,) * length, FinishReason.STOP, spans)
    return (Rollout(completion, score, "r", (-1.0,) * length if reference is None else reference),)


class Bench:
    """A broker with an older trainer, a worker, and the collector of incarnation 3."""

    def __init__(self, folder, *, section: QueueSection | None = None):
        self.broker = MemoryBroker()
        self.older = self.broker.trainer()
        self.older.take_fence(1)
        self.queue = self.broker.trainer()
        self.ledger = Ledger(watermark=10)
        self.path = folder / "ledger.jsonl"
        self.journal = Journal(self.path, incarnation=3)
        self.event_log = EventLog(folder / "events.jsonl", incarnation=3)
        self.reported: list[str] = []
        self.section = section or QueueSection(stall_seconds=0.05, give_up_seconds=0.4)

    def take_over(self, queue=None, *, deterministic: bool = False) -> Collector:
        self.queue.take_fence(3)
        return Collector(
            queue or self.queue,
            records=TaskRecords(self.ledger, self.journal, self.event_log),
            lineage=LINEAGE,
            section=self.section,
            on_wait=self.reported.append,
            deterministic=deterministic,
        )

    def close(self) -> None:
        self.journal.close()
        self.event_log.close()

    def claims(self, count: int = 100) -> Sequence[Claim]:
        return asyncio.run(self.broker.worker("w").claim(count=count, block_seconds=0))

    def finish(self, claim: Claim, result: TaskResult) -> bool:
        return asyncio.run(self.broker.worker("w").finish(claim, result))

    def work(self, result: TaskResult | None = None) -> list[int]:
        claims = self.claims()
        for claim in claims:
            self.finish(claim, result or rollout(HERE, HERE))
        return [claim.task.task_id for claim in claims]

    def events(self) -> list[tuple[int, str]]:
        return [(line["task"], line["event"]) for line in map(json.loads, self.path.read_text().splitlines())]


@pytest.fixture
def bench(tmp_path):
    found = Bench(tmp_path)
    yield found
    found.close()


class Interruptions:
    """The trainer's queue; each listed callable runs once, before a call of that name."""

    def __init__(self, queue, **first):
        self._queue, self._first = queue, first

    def __getattr__(self, name):
        def call(*args, **kwargs):
            if self._first.get(name):
                self._first[name].pop(0)()
            return getattr(self._queue, name)(*args, **kwargs)

        return call


def unavailable() -> None:
    raise QueueUnavailable("gone for a moment")


def test_batch_is_sent_once_and_returned_in_order(bench):
    collector = bench.take_over(Interruptions(bench.queue, read=[bench.work]))
    collector.send([task(12), task(10), task(11)], update=5)
    entries = collector.wait()
    assert [entry.outcome.task.task_id for entry in entries] == [10, 11, 12]
    assert bench.claims() == []


def test_restart_does_not_resend_tasks_under_way(bench):
    """The weights of the checkpoint answered one task, a worker holds one, one was never sent."""
    bench.older.dispatch([task(10, version=WeightVersion(1, 5)), task(11, version=WeightVersion(1, 5))])
    first, held = bench.claims()
    bench.finish(first, rollout(WeightVersion(1, 5)))

    def answers() -> None:
        bench.finish(held, rollout(HERE))
        assert bench.work() == [12]

    collector = bench.take_over(Interruptions(bench.queue, read=[answers]))
    collector.send([task(10), task(11), task(12)], update=5)
    assert [entry.sending.incarnation for entry in collector.wait()] == [1, 1, 3]


def test_outcomes_of_an_abandoned_lineage_are_dropped_and_resent(bench):
    bench.older.dispatch([task(10, version=WeightVersion(1, 5))])
    bench.work(rollout(WeightVersion(1, 5), WeightVersion(1, 6)))
    collector = bench.take_over(Interruptions(bench.queue, read=[lambda: None, bench.work, bench.work]))
    collector.send([task(10)], update=5)
    (entry,) = collector.wait()
    assert entry.sending.incarnation == 3
    assert bench.events() == [(10, "other_lineage")]
    assert set(bench.queue.snapshot().outcome_tasks().values()) == {10}


@pytest.mark.parametrize(
    ("result", "sent", "event"),
    [
        (rollout(WeightVersion(3, 4)), task(10), "stale"),
        (rollout(WeightVersion(1, 4)), task(10), "stale"),
        (rollout(WeightVersion(2, 5)), task(10), "other_lineage"),
        (rollout(HERE), task(10, prompt=(1, 9)), "other_task"),
    ],
)
def test_refused_outcomes_are_journalled_and_resent(bench, result, sent, event):
    bench.older.dispatch([sent])
    bench.work(result)
    collector = bench.take_over(Interruptions(bench.queue, read=[lambda: None, bench.work, bench.work]))
    collector.send([task(10)], update=5)
    (entry,) = collector.wait()
    assert entry.outcome.result == rollout(HERE, HERE)
    assert bench.events() == [(10, event)]


def test_entries_of_settled_or_unknown_tasks_are_deleted(bench):
    bench.older.dispatch([task(3), task(9), task(40)])
    bench.work()
    collector = bench.take_over(Interruptions(bench.queue, read=[bench.work]))
    collector.send([task(10)], update=5)
    assert len(collector.wait()) == 1
    assert set(bench.queue.snapshot().outcome_tasks().values()) == {10}
    assert (40, "not_open") in bench.events()


@pytest.mark.parametrize(
    "bad",
    [
        rollout(),
        rollout(HERE, score=float("nan")),
        rollout(HERE, reference=(float("-inf"),)),
    ],
)
def test_malformed_rollout_becomes_a_dead_letter(bench, bad):
    collector = bench.take_over(Interruptions(bench.queue, read=[lambda: bench.work(bad)]))
    collector.send([task(10)], update=5)
    (entry,) = collector.wait()
    assert entry.outcome.result.reason == "malformed_rollout"


@pytest.mark.parametrize(
    ("group", "detail"),
    [
        (rollout(HERE) + rollout(HERE), "2 rollouts of a task with 3 samples"),
        (rollout(HERE) * 2 + rollout(HERE, score=float("inf")), "the score is inf"),
    ],
)
def test_group_with_a_missing_or_malformed_rollout_becomes_a_dead_letter(group, detail):
    found = checked(Outcome(task(10, samples=3), group, "w", 1, 0)).result
    assert (found.reason, found.detail) == ("malformed_rollout", detail)


def test_oldest_token_of_a_group_decides_whether_it_is_stale_or_void(bench):
    """A group with one token of another lineage, or too old, is sent again; one with a newer one is void."""
    sent = task(10, version=WeightVersion(1, 5), samples=2)
    fresh = rollout(HERE) * 2
    mixed = rollout(HERE) + rollout(HERE, WeightVersion(1, 6))
    bench.older.dispatch([sent])
    bench.work(mixed)
    answers = [lambda: bench.work(rollout(HERE) + rollout(WeightVersion(3, 4))), lambda: bench.work(fresh)]
    collector = bench.take_over(Interruptions(bench.queue, read=[lambda: None, *answers]))
    collector.send([task(10, samples=2)], update=5)
    (entry,) = collector.wait()
    assert entry.outcome.result == fresh
    assert bench.events() == [(10, "other_lineage"), (10, "stale")]
    collector.settled([entry], checkpoint_update=5)
    assert len(bench.broker.outcomes) == 1  # a resume from update 5 could train on it
    newer = replace(
        entry, outcome=replace(entry.outcome, result=rollout(HERE) + rollout(WeightVersion(3, 6)))
    )
    collector.settled([newer], checkpoint_update=5)
    assert not bench.broker.outcomes


def test_answers_for_another_number_of_samples_are_refused(bench):
    """The configuration was changed between two starts, while a task was under way."""
    bench.older.dispatch([task(10, version=WeightVersion(1, 5), samples=3)])
    bench.work(rollout(HERE) * 3)
    answer = Interruptions(bench.queue, read=[lambda: None, lambda: bench.work(rollout(HERE) * 2)])
    collector = bench.take_over(answer)
    collector.send([task(10, samples=2)], update=5)
    (entry,) = collector.wait()
    assert entry.outcome.task.num_samples == 2
    assert bench.events() == [(10, "other_task")]


def test_rollout_with_unequal_lengths_becomes_a_dead_letter():
    outcome = Outcome(task(10), rollout(HERE, HERE, reference=(-1.0,)), "w", 1, 0)
    assert checked(outcome).result.detail == "2 tokens, 2 behaviour log-probs, 1 reference log-probs"


def test_tasks_lost_by_the_queue_are_resent_after_a_stall(bench):
    def forget() -> None:
        bench.broker.prompts.clear()
        bench.broker.open.clear()

    collector = bench.take_over(Interruptions(bench.queue, read=[forget, *[bench.work] * 20]))
    collector.send([task(10), task(11)], update=5)
    assert len(collector.wait()) == 2


def test_outcome_lost_by_the_queue_is_produced_again(bench):
    seen: list[list[int]] = []

    def lose() -> None:
        seen.append(bench.work())
        bench.broker.outcomes.clear()

    collector = bench.take_over(Interruptions(bench.queue, read=[lose, *[bench.work] * 20]))
    collector.send([task(10)], update=5)
    assert len(collector.wait()) == 1
    assert seen == [[10]]


def test_collector_waits_through_an_outage_and_reports_it(bench):
    first = {
        "dispatch": [unavailable],
        "snapshot": [unavailable, unavailable],
        "read": [unavailable, bench.work, unavailable, bench.work],
    }
    bench.section = QueueSection(stall_seconds=0.05, give_up_seconds=60)
    collector = bench.take_over(Interruptions(bench.queue, **first))
    collector.send([task(10)], update=5)
    assert len(collector.wait()) == 1
    collector.settled([], checkpoint_update=0)
    assert any("the queue: gone for a moment" in what for what in bench.reported)


def test_settled_entries_are_deleted_at_once_if_void_else_at_the_checkpoint(bench):
    collector = bench.take_over(
        Interruptions(bench.queue, read=[bench.work, lambda: bench.work(rollout(WeightVersion(3, 6)))])
    )
    collector.send([task(10)], update=5)
    entries = collector.wait()
    bench.ledger.settle(10)
    collector.settled(entries, checkpoint_update=5)  # a resume from update 5 could use it
    assert set(bench.queue.snapshot().outcome_tasks().values()) == {10}
    collector.send([task(11, version=WeightVersion(3, 6))], update=6)
    entries = collector.wait()
    bench.ledger.settle(11)
    collector.settled(entries, checkpoint_update=5)  # newer than the checkpoint: void after a resume
    assert set(bench.queue.snapshot().outcome_tasks().values()) == {10}
    collector.checkpointed(1)
    assert not bench.queue.snapshot().outcome_tasks()


def test_dead_letter_counts_and_stays_until_the_checkpoint(bench):
    collector = bench.take_over(
        Interruptions(bench.queue, read=[lambda: bench.work(DeadLetter("prompt_too_long", "…"))])
    )
    collector.send([task(10)], update=5)
    entries = collector.wait()
    bench.ledger.settle(10, dead_reason="prompt_too_long")
    collector.settled(entries, checkpoint_update=4)
    assert len(bench.queue.snapshot().outcome_tasks()) == 1
    collector.checkpointed(1)
    assert not bench.queue.snapshot().outcome_tasks()


def test_unreadable_entry_is_deleted_and_its_task_resent(bench):
    def unreadable() -> None:
        bench.work()
        (entry_id,) = bench.broker.outcomes
        raise CorruptOutcome(str(entry_id), "not a message")

    collector = bench.take_over(Interruptions(bench.queue, read=[unreadable, bench.work]))
    collector.send([task(10)], update=5)
    (entry,) = collector.wait()
    assert entry.sending.number == 2


def damage(bench: Bench) -> list[int]:
    """Damage every waiting prompt and claim them all."""
    for entry, found in bench.broker.prompts.items():
        bench.broker.prompts[entry] = found._replace(payload=found.payload[:-2])
    return [claim.task.task_id for claim in bench.claims()]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("times", [1, 3])
def test_task_with_a_damaged_entry_is_resent(bench, times, deterministic):
    reads = [*[lambda: damage(bench)] * times, bench.work]
    collector = bench.take_over(Interruptions(bench.queue, read=reads), deterministic=deterministic)
    collector.send([task(10)], update=5)
    (entry,) = collector.wait()
    assert entry.outcome.rollouts
    assert entry.sending.number == times + 1
    assert bench.events() == [(10, "damaged_prompt")] * times
    assert list(bench.broker.outcomes) == [int(entry.entry_id)]


def test_task_with_four_damaged_entries_is_dead(bench):
    collector = bench.take_over(Interruptions(bench.queue, read=[lambda: damage(bench)] * 4))
    collector.send([task(10), task(11)], update=5)
    found = collector.wait()
    assert [entry.outcome.task.task_id for entry in found] == [10, 11]
    assert {entry.outcome.result.reason for entry in found} == {"undecodable_task"}
    assert {entry.sending.number for entry in found} == {4}
    collector.settled(found, checkpoint_update=5)
    assert len(bench.broker.outcomes) == 2


def test_deterministic_run_never_loses_a_task_to_damage(bench):
    reads = [*[lambda: damage(bench)] * 6, bench.work]
    collector = bench.take_over(Interruptions(bench.queue, read=reads), deterministic=True)
    collector.send([task(10)], update=5)
    (entry,) = collector.wait()
    assert entry.outcome.rollouts


def test_newer_trainer_fences_off_this_one(bench):
    collector = bench.take_over()
    bench.broker.trainer().take_fence(4)
    collector.send([task(10)], update=5)
    with pytest.raises(Fenced):
        collector.wait()


def test_lost_fence_is_set_again(bench):
    def wipe() -> None:
        bench.broker.incarnation = 0
        bench.broker.prompts.clear()
        bench.broker.open.clear()

    collector = bench.take_over(Interruptions(bench.queue, read=[wipe, *[bench.work] * 20]))
    collector.send([task(10)], update=5)
    assert len(collector.wait()) == 1
    assert bench.broker.incarnation == 3


def test_stalled_names_the_missing_tasks(bench):
    collector = bench.take_over()
    collector.send([task(10), task(11)], update=5)
    with pytest.raises(Stalled, match="2 of 2 tasks of update 5: 10, 11"):
        collector.wait()


@pytest.mark.parametrize("reason", ["service_error", "policy_died", "reward_died", "reference_died"])
def test_deterministic_run_accepts_only_dead_letters_caused_by_the_task(bench, reason):
    def falters() -> None:
        bench.work(DeadLetter(reason, "a replica had a bad day"))

    collector = bench.take_over(Interruptions(bench.queue, read=[falters, bench.work]), deterministic=True)
    collector.send([task(10)], update=5)
    [entry] = collector.wait()
    assert entry.outcome.rollouts
    assert bench.events() == [(10, "not_the_tasks_fault")]
    collector.send([task(11)], update=5)
    bench.work(DeadLetter("refused_by_policy", "too long"))
    [entry] = collector.wait()
    assert isinstance(entry.outcome.result, DeadLetter)
