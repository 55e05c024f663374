"""Leave-one-out agreement against a loop, and who is flagged among simulated labelers."""

from __future__ import annotations

import itertools
import random

import pytest

from examples.parcel_help.habits import Habit, HabitualLabeler, overlapping
from fairlead.judgments import Judgment, agreement, leave_one_out

NOISE = 0.6
"""Honest labelers agree on 72.7% of pairs, as those of InstructGPT."""


def simulated(seed: int, habits: list[Habit], *, tasks: int, overlap: int) -> list[Judgment]:
    """Return rankings of four answers, which are numbers, by their worth with noise."""
    rng = random.Random(seed)
    asked = [(f"{task}", [f"{rng.gauss(0, 1)}" for _ in range(4)]) for task in range(tasks)]
    known = [
        HabitualLabeler(f"labeler {number}", seed, habit, NOISE, worth=lambda _, text: float(text))
        for number, habit in enumerate(habits)
    ]
    return overlapping(known, asked, overlap=overlap, seed=seed)


def with_ties(found: list[Judgment]) -> list[Judgment]:
    return [
        Judgment(one.task, one.labeler, {answer: rank // 2 for answer, rank in one.ranks.items()})
        for one in found
    ]


def loop(found: list[Judgment], name: str, *, last: int, without: set[str]) -> tuple[int, int, int]:
    """Return tasks, agreeing comparisons and comparisons of a labeler, over its newest shared tasks."""
    shared = []
    for own in reversed([one for one in found if one.labeler == name]):
        products = [
            ((own.ranks[b] - own.ranks[a]) * (other.ranks[b] - other.ranks[a]), other.labeler)
            for other in found
            if other.task == own.task and other.labeler != name
            for a, b in itertools.combinations(own.ranks, 2)
        ]
        if any(product for product, _ in products):
            shared.append([product for product, other in products if product and other not in without])
    flat = list(itertools.chain(*shared[:last]))
    return len(shared[:last]), sum(product > 0 for product in flat), len(flat)


@pytest.mark.parametrize("last", [3, 8, 1000])
def test_leave_one_out_equals_a_loop(last: int):
    found = with_ties(simulated(last, ["honest"] * 5 + ["random"], tasks=40, overlap=3))
    found = [one for one in found if random.Random(one.task + one.labeler).random() < 0.8]
    for figures in leave_one_out(found, last=last, lowest=0.0):
        expected = loop(found, figures.labeler, last=last, without=set())
        assert (figures.tasks, figures.agreed, figures.compared) == expected
        own = [one for one in found if one.labeler == figures.labeler]
        tied = [len(set(pair)) == 1 for one in own for pair in itertools.combinations(one.ranks.values(), 2)]
        assert (figures.judgments, figures.tied) == (len(own), pytest.approx(sum(tied) / len(tied)))
        assert not figures.flagged
    assert leave_one_out([]) == ()


def test_flagged_labelers_do_not_count_among_the_others():
    found = simulated(0, ["honest"] * 4 + ["random", "backwards"], tasks=120, overlap=3)
    figures = leave_one_out(found)
    flagged = {one.labeler for one in figures if one.flagged}
    assert flagged == {"labeler 4", "labeler 5"}
    for one in figures:
        # The backwards labeler was flagged first.
        without = {"labeler 4": {"labeler 5"}, "labeler 5": set[str]()}.get(one.labeler, flagged)
        assert (one.tasks, one.agreed, one.compared) == loop(found, one.labeler, last=30, without=without)
        assert one.as_json()["agreement"] == one.agreement
        assert one.agreement is not None
        assert (one.agreement < 0.60) == one.flagged


def test_a_random_and_a_backwards_labeler_are_flagged_within_30_shared_tasks_and_no_honest_one():
    # Twenty labelers share 200 tasks, three to a task: thirty each.
    habits = ["honest"] * 18 + ["random", "backwards"]
    for seed in range(20):
        found = simulated(seed, habits, tasks=200, overlap=3)
        flagged = {one.labeler for one in leave_one_out(found) if one.flagged}
        assert flagged == {"labeler 18", "labeler 19"}, seed
        honest = [one for one in found if one.labeler not in flagged]
        assert 0.70 < (agreement(honest, seed=0).rate or 0) < 0.76


def test_labelers_are_flagged_only_after_enough_tasks_and_together_if_they_are_alike():
    found = simulated(1, ["honest", "backwards"], tasks=30, overlap=2)
    assert [one.flagged for one in leave_one_out(found[:-2])] == [False, False]
    assert [(one.flagged, one.compared) for one in leave_one_out(found)] == [(True, 180), (True, 180)]
    assert not any(one.flagged for one in leave_one_out(found, lowest=0.0))
    # A labeler who ties everything is compared with nobody; the share of ties shows it.
    tied = [Judgment(one.task, "labeler 9", dict.fromkeys(one.ranks, 1.0)) for one in found[::2]]
    last = leave_one_out([*found, *tied])[-1]
    assert (last.labeler, last.tied, last.tasks, last.agreement, last.flagged) == (
        "labeler 9",
        1,
        0,
        None,
        False,
    )
