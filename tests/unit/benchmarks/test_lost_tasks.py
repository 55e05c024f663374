"""Tasks lost and doubled on purpose: which, how many, what the learner gets, and the table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks import lost_tasks
from benchmarks.lost_tasks import ARMS, NONE, Arm, Faults
from benchmarks.parcel_task.learning import Curve, Point
from fairlead.types import Outcome
from tests.unit.trainer.ppo.ppo_batches import outcome as rollout_of
from trainer.ppo import batch

TASKS, UPDATES = 32, 50


def outcomes_of(update: int) -> list[Outcome]:
    first = update * TASKS
    return [rollout_of(first + place, (1, 5), tuple(range(4, 5 + place)), 0.5) for place in range(TASKS)]


def played(arm: Arm) -> tuple[Counter[int], Faults]:
    """Return how often each task of a run was trained on."""
    faults, seen = Faults(arm, seed=7), Counter[int]()
    for update in range(UPDATES):
        seen.update(outcome.task.task_id for outcome in faults(outcomes_of(update), update))
    return seen, faults


@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_exactly_the_share_of_an_arm_is_lost_or_doubled(arm: Arm):
    seen, faults = played(arm)
    expected = round(arm.share * TASKS * UPDATES)
    assert faults.affected == expected
    lost = TASKS * UPDATES - len(seen)
    doubled = sum(count == 2 for count in seen.values())
    assert max(seen.values()) <= 2
    if arm.how.startswith("lost"):
        assert (lost, doubled) == (expected, 0)
    else:
        # What would be doubled after the last update is not.
        rest = round(arm.share * TASKS) if "later" in arm.how else 0
        assert lost == 0
        assert expected - rest - 1 <= doubled <= expected


def test_longest_tasks_are_lost():
    kept = Faults(Arm("lost, the longest", 0.25), seed=0)(outcomes_of(0), 0)
    assert [outcome.task.task_id for outcome in kept] == list(range(24))


def test_late_double_comes_with_the_next_update():
    faults = Faults(Arm("doubled one update later", 0.25), seed=0)
    assert len(faults(outcomes_of(0), 0)) == TASKS
    second = faults(outcomes_of(1), 1)
    late = [outcome.task.task_id for outcome in second[TASKS:]]
    assert len(late) == 8
    assert all(task < TASKS for task in late)


def test_learner_gets_a_doubled_task_as_two_groups():
    doubled = Faults(Arm("doubled", 0.25), seed=0)(outcomes_of(0), 0)
    rollouts = batch.from_outcomes(doubled, torch.device("cpu"))
    assert rollouts is not None
    assert len(rollouts.task_ids) == len(set(rollouts.groups_B.tolist())) == TASKS + 8


def test_table_compares_seeds_with_those_without_faults(tmp_path: Path):
    def curve(gold: float) -> Curve:
        return Curve(tuple(Point(update, 1.0, 0.5, gold, 9.0, 8, 8) for update in range(1, 6)))

    lossy = ARMS[3]
    found = lost_tasks.by_arm(
        {(NONE, 0): curve(1.0), (NONE, 1): curve(2.0), (lossy, 0): curve(0.9), (lossy, 1): curve(1.9)}
    )
    none, lost = (line.split(" | ") for line in lost_tasks.report(found).splitlines()[2:])
    assert none[:5] == ["| none", "2", "40", "1.50 ± 6.35", "0.71"]
    assert (lost[0], lost[5]) == ("| 20% lost", "-0.10 ± 0.00")
    lost_tasks.draw(found, tmp_path / "lost.svg")
    assert (tmp_path / "lost.svg").read_text().count("<svg") == 1
