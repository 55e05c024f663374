"""The asynchronous trainer on the memory queue: staleness, ledger, resume, dropped rollouts after a fault."""

from __future__ import annotations

import json

import pytest
from prometheus_client import CollectorRegistry

from fairlead.audit import audit
from fairlead.errors import QueueUnavailable
from fairlead.metrics import TrainerMetrics
from fairlead.transports.rollouts.base import OutcomeEntry, Sending
from fairlead.types import DeadLetter, Outcome, WeightVersion
from tests.memory_queue import MemoryBroker
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.ppo_world import World
from tests.unit.trainer.ppo.test_collect import Bench, Interruptions, rollout, task
from tests.unit.trainer.ppo.test_train import Run, configured, count_of_sevens
from trainer.ppo import update_metrics
from trainer.ppo.task_records import read_journal


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return tiny_causal_lm(tmp_path_factory.mktemp("model"))


class UnevenWorld(World):
    """Every third answer is long: sampled with the weights of its claim, it is finished after all others."""

    def __init__(self, model_path, weights):
        super().__init__(model_path, weights, count_of_sevens, MemoryBroker(lease_seconds=600))

    async def _work(self) -> None:
        queue = self.broker.worker("w")
        held = []
        while not self._stop.is_set():
            claims = await queue.claim(count=8, block_seconds=0.02)
            for claim in claims:
                self._refresh()
                if claim.task.task_id % 3 == 0:
                    held.append((claim, self.answer(claim)))
                else:
                    await queue.finish(claim, self.answer(claim))
            if not claims and held:
                await queue.finish(*held.pop(0))


class UnevenRun(Run):
    def __init__(self, config, model_path):
        super().__init__(config, model_path)
        self.world = UnevenWorld(model_path, config.weights_path)
        self.broker = self.world.broker


def ages(path) -> list[int]:
    """Updates between the oldest token of every trained rollout and the weights that trained on it."""
    return [
        line["update"] - min(WeightVersion.parse(text).update for text in line["versions"])
        for line in read_journal(path)
        if line["event"] == "trained"
    ]


@pytest.mark.parametrize(("staleness", "samples"), [(1, 1), (2, 3), (4, 1)])
def test_trained_rollouts_are_within_max_staleness(staleness, samples, tmp_path, model_path):
    groups = {"ppo.num_samples": samples, "ppo.batch_size": 8 * samples}
    config = configured(tmp_path, model_path, **{"ppo.max_staleness": staleness, "ppo.updates": 6}, **groups)
    registry = CollectorRegistry()
    most_open = 0
    with UnevenRun(config, model_path) as run:

        def count_open(update: int) -> None:
            nonlocal most_open
            sent = max(task_id for _, task_id in run.broker.numbers) + 1
            most_open = max(most_open, sent - 8 * update)

        result = run.trainer(TrainerMetrics(registry)).run(on_update=count_open)
        sendings = dict(run.broker.numbers)
    assert (result["tasks_dispatched"], result["tasks_trained"]) == (48, 48)
    assert result["episodes"] == 48 * samples
    assert (result["tasks_lost"], result["tasks_duplicated"], result["dead_letters"]) == (0, 0, 0)
    # Without a fault nothing is dropped and nothing is sent twice.
    assert {line["event"] for line in read_journal(config.folder.ledger)} == {"trained"}
    assert set(sendings.values()) == {1}
    assert most_open == 8 * (staleness + 1)
    found = ages(config.folder.ledger)
    assert 0 < max(found) <= staleness
    assert min(found) >= 0
    lines = [json.loads(line) for line in config.folder.metrics("ppo").read_text().splitlines()]
    assert max(line["staleness_max"] for line in lines) == max(found)
    assert sum(line["staleness_mean"] * 8 for line in lines) == pytest.approx(sum(found))
    for line in lines:
        assert line["staleness_mean"] == pytest.approx(
            line["staleness_in_flight"] + line["staleness_in_queue"]
        )
        assert 0 <= line["idle_fraction"] < 1
    total = registry.get_sample_value("fairlead_trainer_staleness_updates_sum", {"part": "in_queue"})
    assert total == pytest.approx(sum(line["staleness_in_queue"] * 8 * samples for line in lines))


@pytest.mark.parametrize(("update", "wiped"), [(1, False), (3, True)])
def test_resume_loses_and_duplicates_no_task(update, wiped, tmp_path, model_path):
    groups = {"ppo.num_samples": 2, "ppo.batch_size": 16} if wiped else {}
    config = configured(tmp_path, model_path, **{"ppo.max_staleness": 2, "ppo.updates": 5}, **groups)
    with UnevenRun(config, model_path) as run:
        run.killed_after(update)
        if wiped:
            with run.broker.changed:
                for held in (run.broker.prompts, run.broker.leases, run.broker.open, run.broker.outcomes):
                    held.clear()
                run.broker.incarnation = 0
        result = run.trainer().run()
    assert (result["tasks_dispatched"], result["tasks_trained"], result["incarnations"]) == (40, 40, 2)
    assert (result["tasks_lost"], result["tasks_duplicated"], result["dead_letters"]) == (0, 0, 0)
    assert max(ages(config.folder.ledger)) <= 2
    report, _ = audit(config.folder)
    assert report.is_clean, report.findings
    assert (report.tasks, report.trained, report.max_staleness_seen) == (
        40,
        40,
        max(ages(config.folder.ledger)),
    )
    assert not run.broker.outcomes
    assert not run.broker.open


def test_dead_tasks_count_in_a_batch(tmp_path, model_path):
    config = configured(tmp_path, model_path, **{"ppo.max_staleness": 1, "ppo.updates": 3})
    with Run(config, model_path) as run:
        run.world.dead = {3, *range(8, 16)}
        result = run.trainer().run()
    assert (result["tasks_dispatched"], result["tasks_trained"], result["dead_letters"]) == (24, 15, 9)
    assert (result["tasks_lost"], result["tasks_duplicated"]) == (0, 0)


@pytest.fixture
def bench(tmp_path):
    found = Bench(tmp_path)
    yield found
    found.close()


def version(update: int) -> WeightVersion:
    return WeightVersion(1 if update <= 5 else 3, update)


@pytest.mark.parametrize(("age", "sendings"), [(0, 1), (1, 1), (2, 2)])
def test_outcome_is_refused_only_beyond_max_staleness(bench, age, sendings):
    old = rollout(version(5 - age), version(5))

    def answer() -> None:
        if not bench.work(old):
            pytest.fail("nothing was sent")

    collector = bench.take_over(Interruptions(bench.queue, read=[answer, bench.work, bench.work]))
    collector.send([task(10)], update=5, max_staleness=1)
    (entry,) = collector.wait()
    assert entry.sending.number == sendings
    events = bench.events() if sendings > 1 else []
    assert events == [(10, "stale")] * (sendings - 1)


def test_stale_rollouts_after_a_fault_are_dropped_and_their_tasks_resent(bench):
    """Two answers of the previous update, but batches of one: the limit is kept and an answer is dropped."""
    bench.older.dispatch([task(10, version=version(4)), task(11, version=version(4))])
    bench.work(rollout(version(4)))
    collector = bench.take_over()
    collector.send([task(10), task(11)], update=5, max_staleness=1)
    (entry,) = collector.wait(size=1)
    assert (entry.outcome.task.task_id, entry.sending.incarnation) == (10, 1)
    bench.ledger.settle(10)
    collector.send([task(12, version=version(6))], update=6, max_staleness=1)
    collector.settled([entry], checkpoint_update=6)
    assert bench.events() == [(11, "stale")]
    sent = {claim.task.task_id: claim for claim in bench.claims()}
    assert sent.keys() == {12}, "task 11 waits for the reconciliation"
    bench.finish(sent[12], rollout(version(6)))
    (entry,) = collector.wait(size=1)
    assert entry.outcome.task.task_id == 12  # it has arrived, and task 11 is not due yet
    (again,) = bench.claims()
    assert again.task == task(11, version=WeightVersion(3, 6))  # same prompt and seed, present weights


def test_oldest_dispatch_comes_first_and_is_waited_for(bench):
    collector = bench.take_over(Interruptions(bench.queue, read=[lambda: None]))
    collector.send([task(10), task(11)], update=5, max_staleness=1)
    with pytest.raises(Exception, match="of 2 tasks of update 5: 10, 11"):
        collector.wait(size=1)
    first, second = bench.claims()
    bench.finish(second, rollout(version(5)))
    (entry,) = collector.wait(size=1)  # 10 is due at update 6
    assert entry.outcome.task.task_id == 11
    bench.ledger.settle(11)
    collector.send([task(12, version=version(6))], update=6, max_staleness=1)
    (third,) = bench.claims()
    bench.finish(third, rollout(version(6)))
    with pytest.raises(Exception, match="1 of 2 tasks of update 6: 10"):
        collector.wait(size=1)
    bench.finish(first, rollout(version(5), version(6)))
    (entry,) = collector.wait(size=1)
    assert entry.outcome.task.task_id == 10


def test_outage_does_not_delay_a_complete_batch(bench):
    def gone() -> None:
        raise QueueUnavailable("gone")

    queue = Interruptions(bench.queue, read=[bench.work, gone], dispatch=[lambda: None, gone])
    collector = bench.take_over(queue)
    collector.send([task(10), task(11)], update=5, max_staleness=1)
    assert [entry.outcome.task.task_id for entry in collector.wait(size=1)] == [10]
    bench.ledger.settle(10)
    collector.send([task(12, version=version(6))], update=6, max_staleness=1)
    assert [entry.outcome.task.task_id for entry in collector.wait(size=1)] == [11]


def test_staleness_is_split_at_the_newest_token():
    def entry(task_id: int, result) -> OutcomeEntry:
        return OutcomeEntry("1", Sending(1, 1), Outcome(task(task_id), result, "w", 1, 0))

    found = update_metrics.staleness(
        [
            entry(1, rollout(version(2), version(4))),
            entry(2, rollout(version(5))),
            entry(3, DeadLetter("prompt_too_long", "…")),
        ],
        update=5,
    )
    assert found == {
        "staleness_mean": 1.5,
        "staleness_max": 3.0,
        "staleness_in_flight": 1.0,
        "staleness_in_queue": 0.5,
    }
