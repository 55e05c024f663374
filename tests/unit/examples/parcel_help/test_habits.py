"""Simulated labelers with habits: what they rank by, ties, and a given agreement."""

from __future__ import annotations

import random

import pytest

from examples.parcel_help import corpus, people
from examples.parcel_help.habits import HabitualLabeler, Task, gold_worth, noise_for, overlapping
from fairlead.errors import InvalidInput
from fairlead.judgments import agreement, leave_one_out, length_bias, position_bias


def tasks(count: int, *, answers: int) -> list[Task]:
    """Return questions of the corpus with different answers from its demonstrations."""
    by_prompt: dict[str, dict[str, None]] = {}
    for prompt, text in corpus.demonstrations(6_000, seed=1):
        by_prompt.setdefault(prompt, {})[text] = None
    groups = [
        (prompt, [*texts][start : start + answers])
        for prompt, texts in by_prompt.items()
        for start in range(0, len(texts) - answers + 1, answers)
    ]
    return random.Random(0).sample(groups, count)


@pytest.mark.parametrize("tie_below", [0.0, 0.4])
def test_honest_labelers_have_the_agreement_that_the_noise_is_for(tie_below: float):
    asked = tasks(250, answers=4)
    worths = [[gold_worth(prompt, text) for text in texts] for prompt, texts in asked]
    for wanted in (0.66, 0.75):
        noise = noise_for(wanted, worths[:100], tie_below=tie_below)
        known = [HabitualLabeler(f"labeler {n}", 3, noise=noise, tie_below=tie_below) for n in range(4)]
        found = agreement(overlapping(known, asked, overlap=3, seed=0), seed=0)
        assert found.rate == pytest.approx(wanted, abs=0.025)
        assert found.tied is not None
        assert found.tied == 0 if tie_below == 0 else 0.15 < found.tied < 0.5
    with pytest.raises(InvalidInput, match=r"agreement: got 0\.99, allowed: between 0\.50 and"):
        noise_for(0.99, [[0.0, 1.0], [1.0, 1.0]])
    with pytest.raises(InvalidInput, match="agreement: got 0.7, allowed: tasks with two answers or more"):
        noise_for(0.7, [[1.0]])


def test_labelers_say_the_same_again_in_any_order():
    labeler = HabitualLabeler("anna", 1, tie_below=0.3)
    for prompt, texts in tasks(20, answers=5):
        ranks = dict(zip(texts, labeler.ranks(prompt, texts), strict=True))
        assert dict(zip(texts[::-1], labeler.ranks(prompt, texts[::-1]), strict=True)) == ranks
        assert sorted(set(ranks.values())) == list(range(1, max(ranks.values()) + 1))
    other = HabitualLabeler("bo", 1, tie_below=0.3)
    assert any(labeler.ranks(*task) != other.ranks(*task) for task in tasks(20, answers=5))
    alike = people.alike(seed=1)["train"]
    for prompt, texts in tasks(20, answers=5):
        first, *others = (dict(zip(texts, one.ranks(prompt, texts), strict=True)) for one in alike)
        assert others == [first] * len(others)
        # What is said about a text differs from task to task, as with people.
        assert dict(zip(texts[::-1], alike[0].ranks(prompt, texts[::-1]), strict=True)) == first
    noisy = HabitualLabeler("dan", 1, noise_of="task", worth=lambda prompt, text: 0.0)
    orders = {tuple(noisy.ranks("p", ["a", "b", other])[:2]) for other in "cdefghij"}
    assert {first < second for first, second in orders} == {True, False}
    everything = HabitualLabeler("cleo", tie_below=1e9, worth=lambda prompt, text: 0.0)
    assert everything.ranks("p", ["a", "b", "c"]) == [1, 1, 1]


def test_habits_are_found_by_the_figures_for_them():
    asked = tasks(300, answers=4)
    honest = [HabitualLabeler(f"honest {number}", noise=0.5) for number in range(5)]
    others = [HabitualLabeler(habit, habit=habit) for habit in ("random", "backwards", "longest", "first")]
    found = overlapping([*honest, *others], asked, overlap=3, seed=2)
    flagged = {one.labeler for one in leave_one_out(found) if one.flagged}
    assert {"random", "backwards", "first"} <= flagged <= {one.name for one in others}

    def of(name: str) -> list:
        return [one for one in found if one.labeler == name]

    assert (position_bias(of("first")).p_value or 0) < 1e-6 < (position_bias(of("honest 0")).p_value or 0)
    assert (length_bias(of("longest"), seed=0).longer_wins or 0) > 0.9
    assert abs((length_bias(of("random"), seed=0).longer_wins or 0) - 0.5) < 0.1
