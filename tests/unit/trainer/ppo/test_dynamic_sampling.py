"""Dynamic sampling: which groups have a signal, which tasks an update uses, that a kill changes nothing."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from fairlead.audit import audit
from fairlead.config.training import PpoSection
from fairlead.metrics import TrainerMetrics
from fairlead.types import (
    Completion,
    DeadLetter,
    FinishReason,
    Outcome,
    PromptTask,
    Rollout,
    SamplingParams,
    VersionSpan,
)
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.test_collect import HERE, Bench, rollout, task
from tests.unit.trainer.ppo.test_train import Killed, Run, configured, same, weights
from trainer.ppo.dynamic_sampling import DynamicSampling, SignalCheck
from trainer.ppo.progress import TrainingProgress
from trainer.ppo.task_records import read_journal
from trainer.ppo.train import PpoTrainer

LIMIT = 8
SECTION = PpoSection(
    batch_size=8, mini_batch_size=8, num_samples=2, estimator="rloo", score_clip=5.0, missing_eos_penalty=0.0
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return tiny_causal_lm(tmp_path_factory.mktemp("model"))


def outcome(*answers: tuple[float, int]) -> Outcome:
    """A group with a score and a length for each answer; one of eight tokens is cut off."""
    rollouts = []
    for score, length in answers:
        end = FinishReason.LENGTH if length == LIMIT else FinishReason.STOP
        spans = (VersionSpan(HERE, 0, length),)
        rollouts.append(Rollout(Completion((5,) * length, (-1.0,) * length, end, spans), score, "r", ()))
    sent = PromptTask(0, (1,), "", SamplingParams(), HERE, num_samples=len(answers))
    return Outcome(sent, tuple(rollouts), "w", 1, 0)


@pytest.mark.parametrize(
    ("answers", "changes", "expected"),
    [
        (((1.0, 3), (1.0, 4)), {}, False),
        (((1.0, 3), (1.5, 3)), {}, True),
        (((6.0, 3), (9.0, 3)), {}, False),  # both are clipped to 5
        (((6.0, 3), (9.0, 3)), {"normalise_scores": True}, True),
        (((1.0, 3), (1.0, LIMIT)), {}, False),
        (((1.0, 3), (1.0, LIMIT)), {"missing_eos_penalty": 0.5}, True),
        (((1.0, LIMIT), (1.0, LIMIT)), {"missing_eos_penalty": 0.5}, False),
        (((1.0, 3), (1.0, LIMIT)), {"missing_eos_penalty": None}, True),
        (((1.0, LIMIT), (1.0, LIMIT)), {"missing_eos_penalty": None}, False),
        (((1.0, 3), (1.0, 7)), {"overlong_penalty": 1.0, "overlong_buffer_tokens": 4}, True),
        (((1.0, 3), (1.0, 4)), {"overlong_penalty": 1.0, "overlong_buffer_tokens": 4}, False),
    ],
)
def test_group_has_a_signal_if_its_rewards_differ(answers, changes, expected):
    check = SignalCheck(SECTION.model_copy(update=changes), max_new_tokens=LIMIT)
    assert check(outcome(*answers)) is expected
    assert check(replace(outcome(*answers), result=DeadLetter("x", "")))


def used(signals: list[str], *, size: int, limit: int) -> tuple[list[int], list[int]]:
    """The tasks of a synchronous update: its batch, and those set aside; `signals` has a letter per task."""
    end, without = size, 0
    while (found := min(signals[:end].count("n"), limit)) > without:
        end, without = size + found, found
    aside = [number for number, kind in enumerate(signals[:end]) if kind == "n"][:limit]
    return [number for number in range(end) if number not in aside], aside


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("nnsd"), min_size=24, max_size=24),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_synchronous_update_uses_the_same_tasks_in_any_order_of_arrival(
    tmp_path_factory, signals, size, batches, seed
):
    """n: no signal, s: signal, d: dead. Workers finish what is open in random order."""
    draw = random.Random(seed)
    bench = Bench(tmp_path_factory.mktemp("bench"))
    section = PpoSection(
        batch_size=2 * size,
        mini_batch_size=2 * size,
        num_samples=2,
        estimator="rloo",
        dynamic_sampling=True,
        max_extra_batches=batches,
    )
    progress = TrainingProgress(update=5, cursor=10, ledger=bench.ledger)
    results = {
        "n": rollout(HERE) * 2,
        "s": rollout(HERE) + rollout(HERE, score=2.0),
        "d": DeadLetter("x", ""),
    }
    held = []

    def answer() -> None:
        held.extend(bench.claims())
        draw.shuffle(held)
        for claim in [held.pop() for _ in range(min(len(held), draw.randint(1, 3)))]:
            bench.finish(claim, results[signals[claim.task.task_id - 10]])

    class Answering:
        """Answers some tasks before every read."""

        def __getattr__(self, name):
            return getattr(bench.queue, name)

        def read(self, **options):
            answer()
            return bench.queue.read(**options | {"block_seconds": 0.0})

    collector = bench.take_over(Answering())

    def open_tasks(number: int) -> None:
        new = progress.open_new_tasks(section, without_signal=number)
        collector.send([task(number, samples=2) for number in new], update=5)

    dynamic = DynamicSampling(section.extra_tasks, SignalCheck(section, max_new_tokens=LIMIT), open_tasks)
    open_tasks(0)
    found = collector.wait(size=section.tasks_per_update, dynamic=dynamic)
    batch, aside = used(signals, size=size, limit=section.extra_tasks)
    assert [entry.outcome.task.task_id - 10 for entry in found] == batch
    assert [entry.outcome.task.task_id - 10 for entry in collector.set_aside] == aside
    assert len(batch) == size
    bench.close()


GROUPS = {
    "ppo.estimator": "group",
    "ppo.num_samples": 2,
    "ppo.batch_size": 8,
    "ppo.mini_batch_size": 8,
    "ppo.dynamic_sampling": True,
}


def is_odd(answer: tuple[int, ...]) -> float:
    return float(answer[0] % 2)


class DyingQueue:
    """The trainer's queue; ends the trainer at one of its dispatches."""

    def __init__(self, queue, *, dispatch: int) -> None:
        self._queue, self._left = queue, dispatch

    def __getattr__(self, name):
        return getattr(self._queue, name)

    def dispatch(self, tasks):
        self._queue.dispatch(tasks)
        self._left -= 1
        if not self._left:
            raise Killed


def trained(config) -> dict[int, list[int]]:
    """Update → its tasks, those without signal included, of the last incarnation that did it."""
    found: dict[int, list[int]] = {}
    for line in read_journal(config.folder.ledger):
        found.setdefault(line["update"], []).append(line["task"])
    return found


def test_killed_synchronous_run_tops_up_with_the_same_tasks(tmp_path, model_path):
    registry = CollectorRegistry()
    whole = configured(tmp_path / "whole", model_path, **GROUPS)
    with Run(whole, model_path, score=is_odd) as run:
        result = run.trainer(TrainerMetrics(registry)).run()
        expected = weights(run.models)
    without = result["tasks_no_signal"]
    assert without > 6
    assert (result["tasks_trained"], result["episodes"]) == (24, 48)
    assert (result["tasks_dispatched"], result["tasks_lost"], result["tasks_duplicated"]) == (
        24 + without,
        0,
        0,
    )
    assert registry.get_sample_value("fairlead_trainer_tasks_total", {"event": "no_signal"}) == without
    lines = [json.loads(line) for line in whole.folder.metrics("ppo").read_text().splitlines()]
    assert sum(line["no_signal"] for line in lines) == without
    # What the batches leave out decides the mean of all answers: half of them or all are odd.
    answers = [line for line in read_journal(whole.folder.ledger) if line["update"] == 0]
    scores = [score for line in answers for score in line["scores"]]
    assert lines[0]["reward_sampled"] == pytest.approx(sum(scores) / len(scores))
    tasks = trained(whole)
    assert [number for update in sorted(tasks) for number in sorted(tasks[update])] == list(
        range(24 + without)
    )
    for dispatch in (2, 6):  # the first top-ups, and later ones
        killed = configured(tmp_path / f"killed-{dispatch}", model_path, **GROUPS)
        with Run(killed, model_path, score=is_odd) as run:
            queue = DyingQueue(run.broker.trainer(), dispatch=dispatch)
            with pytest.raises(Killed):
                PpoTrainer(killed, queue=queue, store=run.world.store).run()
            again = run.trainer().run()
            assert same(weights(run.models), expected)
        assert again["tasks_no_signal"] == without
        report, _ = audit(killed.folder)
        assert report.is_clean, report.findings
        assert (report.trained, report.no_signal, report.open) == (24, without, 0)


def test_asynchronous_run_with_dynamic_sampling_loses_nothing(tmp_path, model_path):
    config = configured(tmp_path, model_path, **GROUPS, **{"ppo.max_staleness": 2})
    with Run(config, model_path, score=is_odd) as run:
        run.killed_after(3)
        result = run.trainer().run()
    assert (result["tasks_trained"], result["tasks_lost"], result["tasks_duplicated"]) == (24, 0, 0)
    report, _ = audit(config.folder)
    assert report.is_clean, report.findings
    assert (report.trained, report.no_signal, report.open) == (24, result["tasks_no_signal"], 0)
    assert 0 <= report.max_staleness_seen <= 2


def test_groups_without_signal_beyond_the_limit_stay_in_the_batch(tmp_path, model_path, caplog):
    few = {"ppo.max_extra_batches": 1, "ppo.updates": 2}
    config = configured(tmp_path, model_path, **GROUPS, **few)
    with Run(config, model_path, score=lambda answer: 1.0) as run:
        result = run.trainer().run()
    assert (result["tasks_trained"], result["tasks_no_signal"]) == (8, 8)
    assert "update 1: 4 groups had no signal, as many as ppo.max_extra_batches = 1 replaces" in caplog.text
    report, _ = audit(config.folder)
    assert report.is_clean, report.findings
