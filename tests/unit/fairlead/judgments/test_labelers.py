"""Leave-one-out agreement against a loop, and who is flagged among simulated labelers."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from fairlead.judgments import Judgment, agreement, leave_one_out

NOISE = 0.6
"""Honest labelers agree on 72.7% of pairs, as those of InstructGPT."""
HONEST, RANDOM, BACKWARDS = 1.0, 0.0, -1.0


def simulated(seed: int, skills: list[float], *, tasks: int, overlap: int) -> list[Judgment]:
    """Return rankings of four answers by their worth with noise.

    Of as many tasks as there are labelers, each labeler has `overlap`, each time with others.
    """
    rng = np.random.default_rng(seed)
    worths_TA = rng.normal(size=(tasks, 4))
    found = []
    for task in range(tasks):
        if task % len(skills) == 0:
            steps = [0, *rng.choice(np.arange(1, len(skills)), size=overlap - 1, replace=False)]
        for labeler in (int(task + step) % len(skills) for step in steps):
            seen = skills[labeler] * worths_TA[task] / NOISE + rng.gumbel(size=4)
            ranks = dict(zip("abcd", (-seen).tolist(), strict=True))
            found.append(Judgment(f"task {task}", f"labeler {labeler}", ranks))
    return found


def with_ties(found: list[Judgment]) -> list[Judgment]:
    return [
        Judgment(one.task, one.labeler, {answer: round(rank) for answer, rank in one.ranks.items()})
        for one in found
    ]


def loop(found: list[Judgment], name: str, *, last: int, others: set[str]) -> tuple[int, int, int]:
    """Return tasks, agreeing comparisons and comparisons of a labeler, over its newest shared tasks."""
    shared = []
    for own in reversed([one for one in found if one.labeler == name]):
        products = [
            (own.ranks[b] - own.ranks[a]) * (other.ranks[b] - other.ranks[a])
            for other in found
            if other.task == own.task and other.labeler in others - {name}
            for a, b in itertools.combinations(own.ranks, 2)
        ]
        if any(products):
            shared.append([product for product in products if product])
    flat = list(itertools.chain(*shared[:last]))
    return len(shared[:last]), sum(product > 0 for product in flat), len(flat)


@pytest.mark.parametrize("last", [3, 8, 1000])
def test_leave_one_out_equals_a_loop(last: int):
    found = with_ties(simulated(last, [HONEST] * 5 + [RANDOM], tasks=40, overlap=3))
    found = [one for one in found if random.Random(one.task + one.labeler).random() < 0.8]
    names = {one.labeler for one in found}
    for figures in leave_one_out(found, last=last, lowest=0.0):
        expected = loop(found, figures.labeler, last=last, others=names)
        assert (figures.tasks, figures.agreed, figures.compared) == expected
        own = [one for one in found if one.labeler == figures.labeler]
        tied = [len(set(pair)) == 1 for one in own for pair in itertools.combinations(one.ranks.values(), 2)]
        assert (figures.judgments, figures.tied) == (len(own), pytest.approx(sum(tied) / len(tied)))
        assert not figures.flagged
    assert leave_one_out([]) == ()


def test_flagged_labelers_do_not_count_among_the_others():
    found = simulated(0, [HONEST] * 4 + [RANDOM, BACKWARDS], tasks=120, overlap=3)
    figures = leave_one_out(found)
    flagged = {one.labeler for one in figures if one.flagged}
    assert flagged == {"labeler 4", "labeler 5"}
    rest = {one.labeler for one in figures} - flagged
    for one in figures:
        assert (one.tasks, one.agreed, one.compared) == loop(found, one.labeler, last=30, others=rest)
        assert one.as_json()["agreement"] == one.agreement
        assert one.agreement is not None
        assert (one.agreement < 0.60) == one.flagged


def test_a_random_and_a_backwards_labeler_are_flagged_within_30_shared_tasks_and_no_honest_one():
    # Twenty labelers share 200 tasks, three to a task: thirty each.
    skills = [HONEST] * 18 + [RANDOM, BACKWARDS]
    for seed in range(20):
        found = simulated(seed, skills, tasks=200, overlap=3)
        flagged = {one.labeler for one in leave_one_out(found) if one.flagged}
        assert flagged == {"labeler 18", "labeler 19"}, seed
        honest = [one for one in found if one.labeler not in flagged]
        assert 0.70 < (agreement(honest, seed=0).rate or 0) < 0.76


def test_labelers_are_flagged_only_after_enough_tasks_and_together_if_they_are_alike():
    found = simulated(1, [HONEST, BACKWARDS], tasks=30, overlap=2)
    assert [one.flagged for one in leave_one_out(found[:-2])] == [False, False]
    assert [one.flagged for one in leave_one_out(found)] == [True, True]
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
