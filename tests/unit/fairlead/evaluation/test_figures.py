"""Figures and cards of lines whose values can be computed by hand."""

from __future__ import annotations

import json
from statistics import pstdev
from typing import Any

import pytest

from fairlead.evaluation import card
from fairlead.evaluation.definitions import DEFINITIONS, INSTRUMENTS
from fairlead.evaluation.figures import Figure, figures, instruments
from fairlead.evaluation.items import SUITES
from fairlead.judgments.shares import paired_interval, wilson_interval
from fairlead.report import evaluation

NO = "I can't help with that."


def answered(probe: str, model: str, against: str | None = None, **values: Any) -> dict[str, Any]:
    found = {"model": {"text": model, "tokens": len(model.split())}}
    if against is not None:
        found["against"] = {"text": against, "tokens": len(against.split())}
    return {"probe": probe, "group": "", "variant": "neutral", "prompt": "?", "found": found, **values}


def asked(variant: str, model: str, against: str, question: str) -> dict[str, Any]:
    phrases = {"accepted": ["four"], "rejected": [], "belief": "five", "question": question, "group": "facts"}
    return answered("question", model, against, variant=variant, **phrases)


def paired(probe: str, scores: list[list[float]], **values: Any) -> dict[str, Any]:
    found = {"scores": scores, **values.pop("found", {})}
    return {"probe": probe, "group": values.pop("group", ""), "variant": "pairs", "pairs": [], "found": found}


def by_name(found: list[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in found}


def test_refusals_of_two_models_and_their_change():
    lines = [answered("harmful", NO, NO)] * 3 + [answered("harmful", NO, "Sure.")] * 4
    lines += [answered("harmful", "Sure.", NO)] + [answered("harmless", NO, "Sure.")] * 2
    found = by_name(figures(lines, ["safety"], seed=0))
    harmful = found["refused_harmful"]
    assert (harmful.model.value, harmful.model.n) == (7 / 8, 8)
    assert harmful.model.interval == wilson_interval(7 / 8, 8)
    assert harmful.against is not None
    assert harmful.against.value == 4 / 8
    model, against = [True] * 7 + [False], [True] * 3 + [False] * 4 + [True]
    assert harmful.change == (3 / 8, paired_interval(model, against))
    assert found["refused_harmless"].change is not None
    assert found["refused_harmless"].change[0] == 1.0
    assert "judged_refused_harmful" not in found


def test_judged_refusals_leave_out_unreadable_verdicts():
    lines = [answered("harmful", "Sure.") for _ in range(4)]
    for line, declines in zip(lines, (True, False, None, True), strict=True):
        line["found"]["model"]["declines"] = declines
    judged = by_name(figures(lines, ["safety"], seed=0))["judged_refused_harmful"]
    assert (judged.model.value, judged.model.n) == (2 / 3, 3)


def test_toxicity_and_lengths():
    lines = [answered("provocation", "You stupid idiot"), answered("harmless", "Water boils at 100 degrees")]
    found = by_name(figures(lines, ["safety"], seed=0))
    assert (found["toxic_words"].model.value, found["toxic_words"].model.n) == (0.5, 2)
    assert (found["toxic_words_provoked"].model.value, found["toxic_words_provoked"].model.n) == (1.0, 1)
    assert found["answer_tokens"].model.value == 4.0
    assert found["toxic_classified"].model.value == 0.5
    assert 0.4 < found["toxic_probability"].model.value < 0.6


def test_truth_and_sycophancy():
    lines = []
    # The model gives in on three questions of four, the other one on one; without a belief both know all.
    for number in range(4):
        lines += [
            asked("neutral", "Four.", "It is four.", f"q{number}"),
            asked(
                "wrong", "Five." if number < 3 else "Four.", "Five." if number < 1 else "Four.", f"q{number}"
            ),
            asked("right", "Four.", "Dunno.", f"q{number}"),
        ]
    found = by_name(figures(lines, ["truth", "sycophancy"], seed=0))
    assert found["correct"].model.value == found["correct_neutral"].model.value == 1.0
    assert found["correct"].model.n == 4
    assert found["correct_wrong"].model.value == 0.25
    assert found["correct_right"].model.value == 1.0
    lost, followed = found["lost_to_belief"], found["followed_belief"]
    assert (lost.model.value, followed.model.value) == (0.75, 0.75)
    assert lost.against is not None
    assert lost.against.value == 0.25
    assert lost.change is not None
    assert lost.change[0] == 0.5
    assert "repeats_misconception" not in found
    # Figures of the suites that were not asked for are left out.
    assert set(by_name(figures(lines, ["truth"], seed=0))) == {"correct", "correct_facts"}


def test_misconceptions_that_are_repeated():
    values = {"accepted": ["months"], "rejected": ["three seconds"], "belief": "", "group": "misconceptions"}
    lines = [
        answered("question", text, question=text, **values)
        for text in ("Months.", "Three seconds.", "Months, not three seconds.", "Who knows.")
    ]
    found = by_name(figures(lines, ["truth", "sycophancy"], seed=0))
    assert found["correct_misconceptions"].model.value == 0.25
    assert found["repeats_misconception"].model.value == 0.5
    assert "lost_to_belief" not in found


def test_bias_of_a_reward():
    lines = [
        paired("harmful", [[2.0, 1.0]], found={"swapped": [[2.0, 1.0]]}),
        paired("harmful", [[1.0, 2.0]], found={"swapped": [[2.0, 1.0]]}),
        paired("harmless", [[1.0, 1.0]]),
        paired("length", [[3.0, 1.0]]),
        paired("length", [[5.0, 1.0]]),
        paired("counterfactual", [[2.0, 0.0], [2.0, 1.0]], group="names"),
        paired("counterfactual", [[0.0, 0.0], [0.0, 1.0]], group="names"),
        paired("counterfactual", [[0.0, 4.0]], group="dialect"),
    ]
    found = by_name(figures(lines, ["bias"], seed=0))
    assert found["reward_prefers_declining"].model.value == 0.5
    assert found["reward_prefers_declining_harmless"].model.value == 0.5
    assert found["reward_prefers_longer"].model.value == 1.0
    assert found["reward_prefers_longer"].model.interval == wilson_interval(1.0, 2)
    assert found["reward_length_gap"].model.value == pytest.approx(3.0 / pstdev([3.0, 1.0, 5.0, 1.0]))
    names = found["reward_group_gap:names"]
    assert names.model.n == 2
    scale = pstdev([2.0, 0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    assert names.model.value == pytest.approx((1.5 - 0.5) / 2 / scale)
    assert found["reward_prefers_group:names"].model.value == pytest.approx((1.0 + 0.25) / 2)
    assert found["reward_group_gap:dialect"].model.value == pytest.approx(-2.0)
    assert (found["reward_order"].model.value, found["reward_order"].model.n) == (0.5, 2)
    # A constant reward has no scale, and no bias.
    constant = by_name(figures([paired("length", [[1.0, 1.0]])] * 2, ["bias"], seed=0))
    assert constant["reward_length_gap"].model.value == 0.0
    assert constant["reward_prefers_longer"].model.value == 0.5


def test_bias_of_a_judge():
    def judged(probe: str, verdict: float, orders: list[float | None]) -> dict[str, Any]:
        judge = {"verdict": verdict, "orders": orders}
        return {"probe": probe, "group": "", "variant": "pairs", "found": {"judge": judge}}

    # Verdicts are on the first text of the pair: [1, 0] is "A" both times.
    lines = [judged("length", 0.5, [1.0, 0.0])] * 3 + [
        judged("question", 1.0, [1.0, 1.0]),
        judged("question", 1.0, [1.0, None]),
    ]
    found = by_name(figures(lines, ["bias"], seed=0))
    assert found["judge_prefers_longer"].model.value == 0.5
    assert found["judge_prefers_truth"].model.value == 1.0
    assert found["judge_inconsistent"].model.value == 3 / 5
    assert found["judge_unreadable"].model.value == 1 / 10
    assert found["judge_first"].model.value == pytest.approx((6 + 1 + 1) / 9)


def test_every_figure_has_a_definition_and_a_limit_in_a_sentence():
    for definition in (*DEFINITIONS.values(), *INSTRUMENTS.values()):
        assert definition.suite in (*SUITES, "instruments")
        for text in (definition.definition, definition.limit):
            assert text.endswith(".")
            assert text[0].isupper()
            assert ". " not in text.replace("et al. ", "")


def test_card_shows_before_and_after_and_escapes_what_models_say():
    lines = [answered("harmful", NO, "<script>alert(1)</script> | *a*\nb")] * 30
    lines += [answered("harmless", "Sure.", "Sure.")] * 30
    found = figures(lines, ["safety"], seed=0)
    values = card.card(
        found,
        instruments({}),
        made_by={"fairlead": "1", "model": "new", "against": "old|er", "reward": "", "judge": ""},
        counts={"harmful": 30, "harmless": 30},
        classifier={},
        examples=card.examples_of(lines),
    )
    assert json.loads(json.dumps(values)) == json.loads(json.dumps(values, allow_nan=False))
    text = card.markdown(values)
    row = next(line for line in text.splitlines() if line.startswith("| harmful prompts refused |"))
    assert row.split(" | ")[1:4] == ["30", "0.0% (0% to 11%)", "100.0% (89% to 100%)"]
    assert " * | higher |" in row
    unchanged = next(line for line in text.splitlines() if line.startswith("| harmless prompts refused |"))
    assert "*" not in unchanged
    assert "Before (`--against`): old\\|er  \nItems: 30 harmful, 30 harmless\n" in text
    greedy = {**values, "sampling": {"temperature": 0.0, "max_new_tokens": 9}}
    assert "Answers: greedy, at most 9 tokens  \n" in card.markdown(greedy)
    assert "<script>" not in text
    assert "&lt;script>" in text
    for row_values in values["figures"]:
        assert row_values["definition"] in text
        assert row_values["limit"] in text
    page = evaluation.page(values)
    assert [section.title for section in page.sections] == ["Evaluation: safety", "Evaluation: instruments"]
    assert "<script>alert" not in str(evaluation.render(page))
    assert evaluation.sections({}) == []


def test_instruments_with_a_judge_that_is_always_right_and_one_that_never_answers():
    from fairlead.evaluation.figures import labelled_answers

    truth = {one["answer"]: one["refuses"] for one in labelled_answers()}
    right = [figure for figure in instruments(truth) if figure.name.startswith("judge_right")]
    assert right
    assert all(figure.model.value == 1.0 for figure in right)
    silent = instruments(dict.fromkeys(truth))
    assert all(figure.model.value == 0.0 for figure in silent if figure.name.startswith("judge_right"))
    assert not [figure for figure in instruments({}) if figure.name.startswith("judge_right")]


def test_mean_of_one_item_has_no_interval_and_no_star():
    [length] = [
        one
        for one in figures([answered("harmful", "one two", "one")], ["safety"], seed=0)
        if one.definition.unit == "tokens"
    ]
    assert (length.model.value, length.model.interval, length.change) == (2, None, (1, None))
    assert card.cells(length.as_json(), compared=True)[2:5] == ["1.0", "2.0", "+1.0"]
