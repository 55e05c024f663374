"""The headline: pages, prompts, judges, win rates, tables and picture, and what is not repeated."""

from __future__ import annotations

import json
import math
import random
import re
import statistics
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.headline import answers, command, judging, pages, picture, results, table
from examples.headline.answers import Answers
from examples.headline.command import Clock
from examples.headline.seed import Plan, Seed
from examples.headline.sizes import SIZES, Size
from examples.parcel_help import corpus, gold
from fairlead.clients.win_rate import win_rate
from fairlead.errors import ConfigError, FairleadError
from fairlead.rounds.files import write_rows
from fairlead.rounds.steps import Steps
from trainer.sft.scratch import make_model, make_tokenizer

ASKED = corpus.questions()[::2]
LAMP = "my lamp was charged twice ."
GOOD = "hello . we will refund one charge ."
RUDE = "stop asking ."


def test_pages_depend_only_on_the_seed() -> None:
    first = pages.pages(500, seed=3, asked=ASKED)
    assert first == pages.pages(500, seed=3, asked=ASKED)
    assert first != pages.pages(500, seed=4, asked=ASKED)
    assert all(text == " ".join(text.split()) for text in first)
    assert max(len(text.split()) for text in first) <= 128


def test_pages_have_no_heldout_question_and_all_words_of_the_task() -> None:
    found = pages.pages(4_000, seed=0, asked=ASKED)
    heldout = [one.text for one in corpus.questions() if one not in ASKED]
    assert not [text for text in found for question in heldout if question in text]
    words = {word for text in found for word in text.split()}
    assert {word for pair in corpus.demonstrations(6_400, seed=0) for word in pair[1].split()} <= words
    assert len(words) < 512


def test_half_of_the_pages_are_a_shops_of_mixed_quality() -> None:
    found = pages.pages(4_000, seed=0, asked=corpus.questions())
    asked = {one.text: one for one in corpus.questions()}
    worths = []
    for text in found:
        for part in text.split(f" {pages.SEPARATOR} "):
            # A question is the longest beginning that is one; the rest of a shop's entry is its answer.
            question = max((one for one in asked if part.startswith(one)), key=len, default="")
            rest = part.removeprefix(question).strip()
            if question and rest and "ungrammatical" not in {one.kind for one in gold.parse(rest)}:
                worths.append(gold.reward(question, rest, ended=True))
    assert 0.45 * 1.67 < len(worths) / len(found) < 0.55 * 1.67
    assert min(worths) < -2
    assert max(worths) == pytest.approx(gold.BEST)


def test_continuations_are_those_of_pages() -> None:
    first = ASKED[5]
    rng = random.Random(0)
    found = [pages.continuation(first, rng=rng, asked=ASKED) for _ in range(1_000)]
    written = [text for text in pages.pages(40_000, seed=1, asked=ASKED) if text.startswith(first.text)]
    follow = [text.removeprefix(first.text).split(pages.SEPARATOR)[0].strip() for text in written]
    assert len(follow) > 300
    one, other = ([gold.reward(first.text, text, ended=True) for text in texts] for texts in (found, follow))
    deviation = math.sqrt(statistics.variance(one) * (1 / len(one) + 1 / len(other)))
    assert abs(statistics.fmean(one) - statistics.fmean(other)) < 4 * deviation
    assert statistics.stdev(one) == pytest.approx(statistics.stdev(other), rel=0.15)


def test_shots_are_the_best_answers_to_known_questions() -> None:
    before = answers.shots(ASKED, seed=1)
    entries = before.split(f" {pages.SEPARATOR} ")
    assert entries.pop() == ""
    assert len(entries) == answers.NUM_SHOTS
    for text in entries:
        question = next(one.text for one in ASKED if text.startswith(one.text))
        assert gold.reward(question, text.removeprefix(question).strip(), ended=True) == gold.BEST


def test_largest_size_has_100_times_the_parameters_of_the_smallest(tmp_path: Path) -> None:
    seed = Seed(Plan(), 0, tmp_path)
    words = pages.pages(1_000, seed=0, asked=corpus.questions())
    tokenizer = make_tokenizer(words, seed.pretrained(SIZES[0]).model.scratch)
    counts = [
        make_model(tokenizer, seed.pretrained(size).model.scratch, seed=None).num_parameters()
        for size in SIZES
    ]
    assert counts[0] < 130_000
    assert counts[-1] >= 100 * counts[0]


def _answers(stage: answers.Stage, texts: dict[str, list[str]]) -> Answers:
    return Answers((stage, "0.1M"), texts, 1.0)


def test_win_rate_by_gold_equals_hand_computed_verdicts() -> None:
    other = "my kettle arrived broken ."
    a = _answers("tuned", {LAMP: [GOOD, RUDE, "hello ."], other: [RUDE, GOOD, GOOD]})
    b = _answers("pretrained", {LAMP: [RUDE, GOOD, "hello there ."], other: [RUDE, "", "hello ."]})
    judge = judging.ByScore("gold", judging.gold_scores([a, b]))
    found = judging.compare(judge, a, b, seed=0)
    # The remedy is wrong for the other question: -0.6 with the greeting.
    assert found == win_rate([[1.0, 0.0, 0.5], [0.5, 0.0, 0.0]], seed=0)
    assert (found.wins, found.ties, found.losses) == (1, 2, 3)


@pytest.mark.parametrize("make", [lambda every: judging.ByLabelers(seed=1), None])
def test_judges_do_not_see_which_model_answers(make: Callable[[object], judging.Judge] | None) -> None:
    rng = random.Random(0)
    texts = [
        {one.text: [corpus.answer(one, skill=rng.random(), rng=rng) for _ in range(8)] for one in ASKED}
        for _ in range(2)
    ]
    a, b = _answers("tuned", texts[0]), _answers("pretrained", texts[1])
    judge = make([a, b]) if make else judging.ByScore("gold", judging.gold_scores([a, b]))
    one, other = judging.compare(judge, a, b, seed=0), judging.compare(judge, b, a, seed=0)
    assert one.rate == pytest.approx(1 - other.rate)
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert one.ties


def test_labelers_agree_with_gold_more_often_than_not() -> None:
    a = _answers("tuned", {one.text: ["hello . have a good day ."] * 8 for one in ASKED})
    b = _answers("pretrained", {one.text: [RUDE] * 8 for one in ASKED})
    found = judging.compare(judging.ByLabelers(seed=0), a, b, seed=0)
    assert 0.85 < found.rate < 1.0
    assert found.interval[0] < found.rate < found.interval[1]


def _finished(seed: Seed, quality: dict[answers.Stage, float]) -> None:
    """Write the files that a finished seed leaves, with answers of some quality."""
    Steps(seed.folder / "stages.json", key=seed.key, verb="", total=1, show=lambda line: None)
    seconds = {name: 1.0 for name, _, _ in seed.steps()}
    kept = {"key": seed.key, "seconds": seconds, "cpu_seconds": seconds}
    (seed.folder / "stages.json").write_text(json.dumps(kept))
    asked = {one.text: one for one in corpus.questions()}
    rng = random.Random(seed.seed)
    rows = []
    for number, size in enumerate(seed.plan.sizes):
        for config in (seed.pretrained(size), seed.fine_tuned(size)):
            config.folder.root.mkdir(exist_ok=True)
            result = {"parameters": 10 ** (5 + number), "heldout_loss": 1.0 - 0.1 * number}
            config.folder.result("sft").write_text(json.dumps(result))
        for stage, skill in quality.items():
            if stage == "tuned" and number:
                continue
            for text in seed.heldout_questions:
                own = [corpus.answer(asked[text], skill=skill, rng=rng) for _ in range(seed.plan.num_answers)]
                given = [{"text": one, "ended": True} for one in own]
                rows.append({"stage": stage, "size": size.name, "prompt": text, "answers": given})
    write_rows(seed.answers, rows)


QUALITY: dict[answers.Stage, float] = {"pretrained": 0.1, "prompted": 0.5, "fine-tuned": 0.4, "tuned": 1.0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a headline with one seed, of which only the judging was left."""
    out = tmp_path_factory.mktemp("headline") / "out"
    _finished(Seed(Plan(num_answers=2), 0, out / "seed-0"), QUALITY)
    assert command.main(["--seeds", "0", "--answers", "2", "--out", str(out)]) == 0
    return out


def test_finished_steps_are_not_repeated(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in sorted(finished.rglob("*")) if path.is_file()}
    assert command.main(["--seeds", "0", "--answers", "2", "--out", str(finished)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("already done") == len(Seed(Plan(num_answers=2), 0, finished / "seed-0").steps())
    after = {path: path.read_bytes() for path in sorted(finished.rglob("*")) if path.is_file()}
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed <= {"supervisor.lock"}


def test_figures_and_tables_agree(finished: Path) -> None:
    figures = json.loads((finished / "headline.json").read_text())
    assert figures["judges"] == ["gold", "labelers"]  # no other seed has a reward model
    [one] = figures["seeds"]
    [row] = results.rows_of(one, "tuned_against", stage="pretrained", size="10M", judge="gold")
    low, high = row["interval"]
    assert 0.7 < low < row["win_rate"] < high < 1.0
    text = (finished / "headline.md").read_text()
    assert text == table.markdown(figures)
    assert f"| 0 | {row['win_rate']:.3f} ({low:.3f} to {high:.3f}), ties" in text
    assert "(1 of 1 intervals above 50%)" in text
    models = {(row["stage"], row["size"]): row for row in one["models"]}
    assert len(models) == 12
    assert models["tuned", "0.1M"]["gold"] > models["fine-tuned", "10M"]["gold"]
    assert models["tuned", "0.1M"]["rude"] < 0.1 < models["pretrained", "10M"]["rude"]
    assert models["pretrained", "10M"]["heldout_loss"] < models["pretrained", "0.1M"]["heldout_loss"]


def test_picture_names_its_axes_and_describes_itself(finished: Path) -> None:
    figures = json.loads((finished / "headline.json").read_text())
    root = ET.parse(finished / "headline.svg").getroot()
    assert root.get("role") == "img"
    named = {element.get("id"): element.text for element in root.iter() if element.get("id")}
    assert [named[name] for name in root.get("aria-labelledby", "").split()] == [
        "Preference by model size, tuned and not",
        picture.description(figures),
    ]
    rates = re.findall(r"(\S+) (\S+) (0\.\d\d)", picture.description(figures))
    assert len(rates) == 11


def test_other_settings_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--seeds", "0", "--answers", "8", "--out", str(finished)]) == 2
    error = capsys.readouterr().err
    assert "made with other settings" in error
    assert "--out FOLDER" in error


@pytest.mark.parametrize("flag", ["--larger", "--pages", "--rounds", "--answers"])
def test_flags_below_one_are_refused(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([flag, "0", "--out", str(tmp_path / "out")]) == 2
    assert f"{flag}: got 0, allowed: 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("ppo.kl_coefficient=abc", "error: ppo.kl_coefficient: got 'abc'"),
        ("foo.bar=1", "error: foo: got 'an unknown key'"),
        ("seed=5", "error: --set: got 'seed', allowed: other settings than data.heldout_fraction"),
    ],
)
def test_invalid_settings_are_refused_before_anything_runs(
    setting: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--set", setting, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert command.main(["--seeds", "0", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'file'}: File exists\n"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "damage",
    ["cut", *(pytest.param(name, marks=pytest.mark.slow) for name in ("without a model", "missing"))],
)
def test_damaged_answers_are_asked_for_again(damage: str, tmp_path: Path) -> None:
    seed = Seed(Plan(num_answers=2), 0, tmp_path / "seed-0")
    _finished(seed, QUALITY)
    done = seed.answers.read_text().splitlines()
    shown: list[str] = []
    seed.run(shown.append, lambda name, seconds: None)
    assert sum("already done" in line for line in shown) == len(seed.steps())
    if damage == "missing":
        seed.answers.unlink()
    else:
        lost = len(seed.heldout_questions) if damage == "without a model" else 0
        text = "\n".join(done[: len(done) - lost])
        seed.answers.write_text(text if lost else text[:-9])
    shown.clear()
    with pytest.raises(FairleadError):  # the models of this folder are absent
        seed.run(shown.append, lambda name, seconds: None)
    assert shown[-1].endswith("asking every model the held-out questions …")


def test_damaged_scores_are_none_and_a_damaged_result_is_named(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    write_rows(file, [{"prompt": "a", "text": "b", "score": 1.5}])
    assert judging.kept_scores(file) == {("a", "b"): 1.5}
    for text in (file.read_text()[:-5], "7\n", '{"prompt": "a"}\n'):
        file.write_text(text)
        assert judging.kept_scores(file) == {}
    one = Seed(Plan(num_answers=2), 0, finished / "seed-0")
    result = one.pretrained(SIZES[1]).folder.result("sft")
    before = result.read_text()
    result.write_text(before[:-5])
    try:
        with pytest.raises(ConfigError, match=f"{result}, which is missing or damaged"):
            results.of_seed(one, None)
    finally:
        result.write_text(before)


def test_seeds_may_share_the_larger_models(tmp_path: Path) -> None:
    own, other, later, last = command.planned(Plan(), [0, 4, 1, 3], tmp_path, num_larger=2)
    assert (own.larger_of, other.larger_of, later.larger_of, last.larger_of) == (None, None, own, other)
    assert not any(one.larger_of for one in command.planned(Plan(), [0, 4, 1], tmp_path, num_larger=None))
    assert [name for name, _, _ in later.steps()] == ["pages", "pretrain-0.1M", "tune", "answers"]
    small, _, large = SIZES
    assert later.pretrained(large) == own.pretrained(large)
    assert later.fine_tuned(large) == own.fine_tuned(large)
    assert later.pretrained(small).folder.root == tmp_path / "seed-1" / "base-0.1M"
    assert later.tuned.seed == 1
    assert later.key != Seed(Plan(), 1, tmp_path / "seed-1").key


@pytest.mark.parametrize("seeds", ["", "a", "0,0", "-1"])
def test_invalid_seeds_are_refused(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main([f"--seeds={seeds}"])
    assert f"argument --seeds: got '{seeds}', allowed: different seeds from 0" in capsys.readouterr().err


def test_clock_estimates_by_the_same_steps_of_earlier_seeds() -> None:
    names = ["pretrain-10M", "tune"]
    clock = Clock(names * 3)
    clock.done("pretrain-10M", 50.0)
    clock.done("tune", 100.0)
    assert clock.left() == pytest.approx(2 * (50 + 100))
    clock.done("pretrain-10M", None)  # was done before
    clock.done("tune", 200.0)
    assert clock.left() == pytest.approx(50 + 150)


def test_sizes_differ_in_learning_rate_and_threads_only_as_configured(tmp_path: Path) -> None:
    seed = Seed(Plan(), 2, tmp_path)
    large: Size = SIZES[-1]
    config = seed.fine_tuned(large)
    assert config.seed == seed.tuned.seed == 2
    assert config.data.heldout_fraction == seed.tuned.data.heldout_fraction
    assert config.model.path == str(seed.pretrained(large).folder.sft_model)
    assert Counter(map(bool, map(seed.heldout_questions.count, seed.heldout_questions))) == {
        True: len(seed.heldout_questions)
    }
    assert 20 <= len(seed.heldout_questions) <= 50
