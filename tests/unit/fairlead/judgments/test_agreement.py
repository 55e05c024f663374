"""Agreement against published values, scikit-learn, evalica, and loops over every two labelers."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import get_args

import evalica
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from fairlead.errors import InvalidInput
from fairlead.judgments import (
    Judgment,
    agreement,
    by_two_labelers,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
)
from fairlead.judgments.alpha import Level

LEVELS = get_args(Level)
GAP = math.nan
# Joint counts of PandaLM's three annotators on its test set v1: [first][second][third], each 0, 1 or 2.
PANDALM = [
    [[85, 2, 2], [0, 0, 0], [4, 0, 4]],
    [[5, 11, 0], [10, 368, 10], [0, 12, 11]],
    [[7, 0, 4], [0, 11, 18], [2, 7, 426]],
]
TEXTBOOK = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, GAP, GAP, GAP],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, GAP, 3],
    [GAP, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, GAP],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, GAP],
]


def pandalm() -> np.ndarray:
    cells = itertools.product(range(3), repeat=3)
    return np.array([cell for cell in cells for _ in range(PANDALM[cell[0]][cell[1]][cell[2]])])


def judgments(rng: random.Random, *, tasks: int, labelers: int, answers: int) -> list[Judgment]:
    """Return rankings with ties; labelers leave out tasks, and answers of a task."""
    found = []
    for task in range(tasks):
        for labeler in rng.sample(range(labelers), rng.randint(0, labelers)):
            known = rng.sample(range(answers), rng.randint(2, answers))
            ranks = {f"answer {number}": float(rng.randint(1, 3)) for number in known}
            found.append(Judgment(f"task {task}", f"labeler {labeler}", ranks))
    rng.shuffle(found)
    return found


def both(first: Judgment, second: Judgment) -> list[tuple[int, int]]:
    """Return the signs that two labelers give every pair that both rank."""
    pairs = itertools.combinations([answer for answer in first.ranks if answer in second.ranks], 2)

    def sign(one: Judgment, a: str, b: str) -> int:
        return int(np.sign(one.ranks[b] - one.ranks[a]))

    return [(sign(first, a, b), sign(second, a, b)) for a, b in pairs]


def couples(found: Sequence[Judgment]) -> list[tuple[Judgment, Judgment]]:
    return [(a, b) for a, b in itertools.combinations(found, 2) if a.task == b.task]


def test_kappa_and_alpha_have_the_published_values():
    labels = pandalm()
    assert len(labels) == 999
    kappas = [cohen_kappa(list(labels[:, a]), list(labels[:, b])) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert kappas == pytest.approx([0.8520, 0.8789, 0.8617], abs=5e-5)
    counts = [[(row == label).sum() for label in range(3)] for row in labels]
    assert fleiss_kappa(counts) == pytest.approx(0.8642, abs=5e-5)
    ordered = np.array([0, -1, 1])[labels]  # a tie lies between the two answers
    alphas = [krippendorff_alpha(ordered, level=level) for level in ("nominal", "ordinal", "interval")]
    assert alphas == pytest.approx([0.8642, 0.8775, 0.8772], abs=5e-5)
    textbook = [krippendorff_alpha(np.transpose(TEXTBOOK), level=level) for level in LEVELS]
    assert textbook == pytest.approx([0.743, 0.815, 0.849, 0.797], abs=5e-4)
    fourteen_raters = [
        *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
        *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
    ]
    assert fleiss_kappa(fourteen_raters) == pytest.approx(0.210, abs=5e-4)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_and_alpha_equal_those_of_other_packages(seed: int):
    rng = np.random.default_rng(seed)
    values_LU = rng.integers(1, 5, size=(rng.integers(2, 7), 40)).astype(float)
    assert cohen_kappa(list(values_LU[0]), list(values_LU[1])) == pytest.approx(
        cohen_kappa_score(values_LU[0], values_LU[1]), abs=1e-9
    )
    values_LU[rng.random(values_LU.shape) < 0.3] = math.nan
    for level in LEVELS:
        expected = evalica.alpha(pd.DataFrame(values_LU), distance=level).alpha
        assert krippendorff_alpha(values_LU.T, level=level) == pytest.approx(expected, abs=1e-9)


def test_kappa_and_alpha_without_disagreement_to_expect_are_nan():
    assert math.isnan(cohen_kappa(["a", "a"], ["a", "a"]))
    assert math.isnan(cohen_kappa([], []))
    assert math.isnan(fleiss_kappa([[3, 0], [3, 0]]))
    assert math.isnan(fleiss_kappa([]))
    for values in ([[1, 1], [1, GAP]], [[1, GAP], [GAP, 2]], [[GAP, GAP]]):
        assert math.isnan(krippendorff_alpha(values, level="ordinal"))
    with pytest.raises(InvalidInput, match="second: got '1 values', allowed: 2"):
        cohen_kappa([1, 2], [1])
    with pytest.raises(InvalidInput, match="counts: got 'from 2 to 3 values in a unit"):
        fleiss_kappa([[1, 1], [2, 1]])
    with pytest.raises(InvalidInput, match="values: got 'an infinite value'"):
        krippendorff_alpha([[1, math.inf]], level="nominal")
    with pytest.raises(InvalidInput, match="level: got 'order'"):
        krippendorff_alpha([[1, 2]], level="order")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_agreement_equals_a_loop_over_every_two_labelers(seed: int):
    found = judgments(random.Random(seed), tasks=30, labelers=5, answers=4)
    signs = [sign for one, other in couples(found) for sign in both(one, other)]
    ordered = [a * b for a, b in signs if a * b]
    whole = agreement(found, seed=0)
    assert (whole.compared, whole.judgments) == (len(ordered), len(found))
    assert whole.rate == pytest.approx(sum(product > 0 for product in ordered) / len(ordered), abs=1e-12)
    assert whole.tied == pytest.approx(1 - len(ordered) / len(signs), abs=1e-12)
    # Alpha against evalica's: every pair of answers as a unit, in both directions, half as many units.
    units: dict[tuple[str, str, str], dict[str, float]] = {}
    for one in found:
        for a, b in itertools.permutations(one.ranks, 2):
            units.setdefault((one.task, a, b), {})[one.labeler] = np.sign(one.ranks[b] - one.ranks[a])
    alpha = evalica.alpha(pd.DataFrame(units), distance="ordinal")
    values = sum(len(unit) for unit in units.values() if len(unit) > 1)
    beyond = 2 * (1 - alpha.alpha) / (values - 1) * (values / 2 - 1)  # each value counted once, not twice
    assert whole.alpha == pytest.approx(1 - beyond, abs=1e-9)
    by_two = {(two.first, two.second): two for two in by_two_labelers(found)}
    assert sum(two.compared for two in by_two.values()) == whole.compared
    for (first, second), two in by_two.items():
        own = [pair for pair in couples(found) if {pair[0].labeler, pair[1].labeler} == {first, second}]
        own = [pair if pair[0].labeler == first else pair[::-1] for pair in own]
        shared = [sign for one, other in own for sign in both(one, other)]
        products = [a * b for a, b in shared]
        assert (two.agreed, two.compared) == (products.count(1), len(products) - products.count(0))
        assert (two.pairs, two.rate) == (len(shared), two.agreed / two.compared if two.compared else None)
        mirrored = [*shared, *((-a, -b) for a, b in shared)]
        expected = cohen_kappa_score(*zip(*mirrored, strict=True))
        assert two.kappa == pytest.approx(expected, abs=1e-9) if not math.isnan(expected) else None
        assert two.as_json()["rate"] == two.rate


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_agreement_depends_on_neither_names_nor_order(seed: int):
    rng = random.Random(seed)
    found = judgments(rng, tasks=12, labelers=3, answers=3)
    other = {f"answer {number}": f"text {7 - number}" for number in range(3)}
    renamed = [
        Judgment(
            one.task[::-1], one.labeler[::-1], {other[answer]: 2 * rank for answer, rank in one.ranks.items()}
        )
        for one in found
    ]
    rng.shuffle(renamed)
    first, second = agreement(found, seed=1), agreement(renamed, seed=1)
    assert (first.rate, first.compared, first.tasks) == (second.rate, second.compared, second.tasks)
    assert first.alpha == pytest.approx(second.alpha, abs=1e-9) if first.alpha is not None else True
    for one, again in ((first.interval, second.interval), (first.alpha_interval, second.alpha_interval)):
        assert one == (again if again is None else pytest.approx(again, abs=1e-9))
    assert first.rate is None or 0 <= first.rate <= 1
    assert first.interval is None or 0 <= first.interval[0] <= first.interval[1] <= 1


def test_agreement_of_copies_is_one_and_of_opposites_zero():
    ranks = {"a": 1.0, "b": 2.0, "c": 2.0}
    back = {"a": 2.0, "b": 1.0, "c": 1.0}
    same = [Judgment(f"task {task}", name, ranks) for task in range(5) for name in ("anna", "bo")]
    whole = agreement(same, seed=0)
    assert (whole.rate, whole.interval, whole.alpha) == (1.0, (1.0, 1.0), 1.0)
    assert (whole.tasks, whole.compared, whole.tied) == (5, 10, pytest.approx(1 / 3))
    opposite = [Judgment(one.task, one.labeler, back if one.labeler == "bo" else ranks) for one in same]
    whole = agreement(opposite, seed=0)
    assert (whole.rate, whole.interval) == (0.0, (0.0, 0.0))
    assert whole.alpha is not None
    assert whole.alpha < 0
    nobody = agreement([same[0]], seed=0)
    assert (nobody.rate, nobody.interval, nobody.tied, nobody.alpha) == (None, None, None, None)
    assert agreement([], seed=0).judgments == 0
    assert by_two_labelers([]) == ()
    one_task = agreement(same[:2], seed=0)
    assert (one_task.rate, one_task.interval, one_task.alpha_interval) == (1.0, None, None)


def test_interval_of_agreement_covers_the_truth_in_95_percent_of_projects():
    # Two labelers rank four answers with noise; pairs of a ranking are dependent, so tasks are resampled.
    rng = np.random.default_rng(5)

    def worths(tasks: int) -> np.ndarray:
        return rng.normal(size=(tasks, 1, 4)) + 0.8 * rng.normal(size=(tasks, 2, 4))

    first, second = np.triu_indices(4, 1)
    many = worths(50_000)
    truth = np.prod(np.sign(many[..., first] - many[..., second]), axis=1).mean() / 2 + 0.5
    covered = 0
    for seed in range(25):
        found = [
            Judgment(str(task), str(labeler), dict(zip("abcd", own.tolist(), strict=True)))
            for task, both in enumerate(worths(50))
            for labeler, own in enumerate(both)
        ]
        interval = agreement(found, seed=seed).interval
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert 21 <= covered <= 25


def test_judgment_refuses_what_cannot_be_compared():
    ranks = {"a": 1.0, "b": 2.0}
    good = Judgment("1", "anna", ranks, shown=("b", "a"), lengths={"a": 3, "b": 0})
    assert (good.best, Judgment("1", "anna", {"a": 1.0, "b": 1.0}).best) == (("a",), ("a", "b"))
    for values, message in (
        ({"task": ""}, "task: got 'no text', allowed: an id"),
        ({"labeler": ""}, "labeler: got 'no text'"),
        ({"ranks": {"a": 1.0}}, "ranks: got '1 answers', allowed: at least 2"),
        ({"ranks": {"a": 1.0, "b": math.nan}}, r"ranks\.b: got nan, allowed: a finite number"),
        ({"shown": ("a",)}, "shown: got 'a', allowed: every ranked answer once"),
        ({"shown": ("a", "a")}, "shown: got 'a, a', allowed: every ranked answer once"),
        ({"lengths": {"a": 1}}, "lengths: got 'a', allowed: a length of every ranked answer"),
        ({"lengths": {"a": 1, "b": -1}}, r"lengths\.b: got -1, allowed: 0 or more"),
    ):
        with pytest.raises(InvalidInput, match=message):
            Judgment(**({"task": "1", "labeler": "anna", "ranks": ranks} | values))
    with pytest.raises(InvalidInput, match=r"judgments\[2\]: got .a second judgment of 'anna' on task '1'"):
        agreement([good, Judgment("1", "bo", ranks), good], seed=0)
