"""The quickstart's figures, page and stages, on a small real round: answers of the corpus, labels, scores."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path
from statistics import fmean

import pytest

from examples.parcel_help import corpus, figures, gold, people, picture, report, rows
from examples.parcel_help.files import Files
from fairlead.config import RunConfig, load
from fairlead.data.comparisons import RankedResponses
from fairlead.data.records import is_heldout, load_preferences
from fairlead.errors import ConfigError
from fairlead.judgments.calibration import expected_calibration_error
from fairlead.local.serving import GeneratedAnswer
from fairlead.rounds.configuration import round_config
from fairlead.rounds.files import read_answers, read_rows, write_answers, write_rows
from fairlead.rounds.labelers import pairs

ROUND = ("judgments", "reward_model", "gate", "ppo")
STAGES = dict.fromkeys(
    (
        "corpus",
        "sft",
        "sample",
        *(f"{name}-0" for name in ROUND),
        "evaluate_and_sample-0",
        *(f"{name}-1" for name in ROUND),
        "evaluate-1",
    ),
    2.0,
)


QUEUE = {
    "tasks_dispatched": 64,
    "tasks_trained": 64,
    "tasks_duplicated": 0,
    "tasks_lost": 0,
    "dead_letters": 0,
}


def _rank(config: RunConfig, files: Files, number: int) -> None:
    labeler = people.alike(seed=config.seed)["train"][0]
    rankings = []
    for answers in read_answers(files.of_round(number, "tasks")):
        texts = list(dict.fromkeys(answer.text for answer in answers))
        ranks = zip(texts, labeler.ranks(str(answers[0].prompt), texts), strict=True)
        responses = [{"text": text, "rank": rank} for text, rank in ranks]
        rankings.append({"prompt": answers[0].prompt, "responses": responses})
    write_rows(files.of_round(number, "rankings"), rankings)


def _worth(answer: GeneratedAnswer) -> float:
    return gold.reward(str(answer.prompt), answer.text, ended=answer.ended)


def _rounds(tmp_path: Path) -> tuple[RunConfig, Files]:
    """Write answers of mixed quality, then the better of two, then the best of three.

    The first reward model scores the first answers by gold with noise and later ones by noise; the second
    one scores all of them by gold with noise.
    """
    config = load(None, overrides={"runs": str(tmp_path), "name": "q", "data.heldout_fraction": 0.2})
    files = Files(config.folder.root / "data")
    pool: dict[str, list[GeneratedAnswer]] = {}
    for prompt, text in corpus.demonstrations(6_000, seed=1):
        pool.setdefault(prompt, []).append(GeneratedAnswer(prompt, text, True))
    groups = list(pool.values())
    best = [
        [[max(group[start : start + of], key=_worth) for start in range(0, 8, of)] for group in groups]
        for of in (1, 2, 3)
    ]
    write_answers(files.answers_sft, [group[8:12] for group in groups])
    answers = {"tasks-0": [group[:4] for group in best[0]], "tasks-1": [group[:4] for group in best[1]]}
    answers |= {"answers-0": [group[:4] for group in best[1]], "answers-1": best[2]}
    for name, found in answers.items():
        kind, _, number = name.partition("-")
        write_answers(files.of_round(int(number), kind), found)
    rng, known = random.Random(3), {answer.text for group in groups for answer in group[:4]}
    every = sorted({(a.prompt, a.text) for group in groups for a in group})
    for number in (0, 1):
        _rank(config, files, number)
        scores = []
        for prompt, text in every:
            blind = number == 0 and text not in known
            worth = 0.0 if blind else _worth(GeneratedAnswer(prompt, text, True))
            scores.append({"prompt": prompt, "text": text, "score": worth + rng.gauss(0, 0.5)})
        write_rows(files.of_round(number, "scores"), scores)
        folder = round_config(config, number).folder
        folder.root.mkdir(exist_ok=True)
        result = {"updates": 1, "episodes": 64, "kl": 1.5 + number, "guards": [], **QUEUE}
        folder.result("ppo").write_text(json.dumps(result))
        row = {"step": 1, "update": 1.0, "reward": 0.5 + number, "guard_kl": 1.5 + number, "kl": 1.5}
        folder.metrics("ppo").write_text(json.dumps(row) + "\n")
        sample = {
            "update": 1,
            "task": 0,
            "prompt": every[0][0],
            "text": "hello .",
            "ended": True,
            "score": 0.0,
        }
        folder.rollout_samples.write_text(json.dumps(sample) + "\n")
    config.folder.result("sft").write_text(json.dumps({"heldout_loss": 0.5}))
    return config, files


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Files]:
    """Two rounds and their report."""
    config, files = _rounds(tmp_path_factory.mktemp("written"))
    report.write(config, files, num_rounds=2, seconds=STAGES)
    return config, files


def test_report_json_has_every_key_and_correct_numbers(written: tuple[RunConfig, Files]) -> None:
    config, files = written
    found = json.loads(config.folder.report_json.read_text())

    assert set(STAGES) | {"report", "total"} == set(found["seconds"])
    assert found["seconds"]["total"] == pytest.approx(2 * len(STAGES) + found["seconds"]["report"])
    assert found["sft"] == {"heldout_loss": 0.5}
    assert found["queue"] == {name: 2 * count for name, count in QUEUE.items()}
    first, only = found["rounds"]
    assert first.keys() == only.keys()
    assert first["reward_model"].keys() == only["reward_model"].keys()
    assert first["ppo"].keys() == only["ppo"].keys()
    model, ppo = only["reward_model"], only["ppo"]
    assert {"accuracy_labels", "accuracy_gold", "ece", "baselines"} <= set(model)
    assert {"longer_wins", "bag_of_words"} == set(model["baselines"])
    assert all({"accuracy_labels", "accuracy_gold"} == set(one) for one in model["baselines"].values())
    # Gold with a little noise beats a bag of words, which beats lengths.
    assert 0.85 < model["accuracy_gold"] <= 1
    assert model["accuracy_gold"] > model["baselines"]["bag_of_words"]["accuracy_gold"]
    assert model["accuracy_labels"] < model["accuracy_gold"]

    heldout = [q.text for q in corpus.questions() if is_heldout(config, q.text)]
    round_ = figures.read_round(config, files, 1)
    sft, before, after = (
        figures.gold_rewards(side, heldout) for side in (round_.sft, round_.before, round_.after)
    )
    assert ppo["gold_before"] == first["ppo"]["gold_after"]
    assert ppo["heldout_prompts"] == len(heldout) > 10
    assert ppo["gold_before"] == pytest.approx(fmean(itertools.chain(*before.values())))
    assert ppo["gold_after"] == pytest.approx(fmean(itertools.chain(*after.values())))
    wins = [
        fmean(1.0 if late > early else 0.5 if late == early else 0.0 for late in after[p] for early in sft[p])
        for p in heldout
    ]
    assert ppo["win_rate_vs_sft"] == pytest.approx(fmean(wins))
    assert ppo["win_rate_interval"][0] < ppo["win_rate_vs_sft"] < ppo["win_rate_interval"][1]
    assert ppo["proxy_after"] > ppo["proxy_before"]
    assert (ppo["kl"], ppo["episodes"]) == (2.5, 64)
    assert ppo["training_prompts"]["gold_after"] > ppo["training_prompts"]["gold_before"]

    assert len(found["samples"]) == config.evaluation.num_report_samples
    sample = found["samples"][0]
    assert sample["heldout"] is True
    assert sample["gold_after"] == gold.reward(sample["prompt"], sample["after"], ended=True)


def test_stale_reward_model_is_less_accurate_on_the_tuned_policys_answers(
    written: tuple[RunConfig, Files],
) -> None:
    config, files = written
    first, second = (
        one["reward_model"] for one in json.loads(config.folder.report_json.read_text())["rounds"]
    )
    assert first["stale_accuracy_gold"] is None
    assert first["accuracy_gold"] > 0.85
    assert second["stale_accuracy_gold"] < second["fresh_accuracy_gold"] - 0.05
    assert second["comparisons"] > first["comparisons"]

    # Computed by hand: the first model's scores on the second round's rankings of held-out prompts.
    scores = {(r["prompt"], r["text"]): r["score"] for r in read_rows(files.of_round(0, "scores"))}
    right = []
    for row in read_rows(files.of_round(1, "rankings")):
        if is_heldout(config, row["prompt"]):
            for better, worse in pairs(row):
                one, other = (GeneratedAnswer(row["prompt"], text, True) for text in (better, worse))
                if _worth(one) != _worth(other):
                    higher = scores[one.prompt, one.text] > scores[other.prompt, other.text]
                    right.append(higher == (_worth(one) > _worth(other)))
    assert second["stale_accuracy_gold"] == pytest.approx(fmean(right))
    assert second["fresh_comparisons"] >= len(right) > 50


def test_page_shows_the_figures(written: tuple[RunConfig, Files]) -> None:
    config, _ = written
    found = json.loads(config.folder.report_json.read_text())
    html = config.folder.report_html.read_text(encoding="utf-8")
    first, ppo = (one["ppo"] for one in found["rounds"])
    for shown in (
        f"{ppo['win_rate_vs_sft']:.0%}",
        f"{first['gold_before']:+.2f} → {first['gold_after']:+.2f} → {ppo['gold_after']:+.2f}",
        "Round by round",
        "The reward model becomes stale",
        "Proxy and gold",
        "Signals of reward hacking",
        "win rate against SFT",
        "bag of words",
        "the longer answer wins",
        "2.5 nats per answer",
        found["samples"][0]["after"],
    ):
        assert shown in html
    lines = report.summary(config.folder.report_json)
    assert f"win rate against SFT   {ppo['win_rate_vs_sft']:.2f}" in lines
    assert "128 of 128 tasks trained on, 0 lost, 0 duplicated" in lines


def test_rows_of_runs_and_their_means(written: tuple[RunConfig, Files]) -> None:
    config, _ = written
    first, second = json.loads(config.folder.report_json.read_text())["rounds"]
    one, _, mean = rows.tables([config.folder.root] * 2).splitlines()[2:]
    _, _, seed, wins, gold_rewards, models, refreshed, kl, _ = (cell.strip() for cell in one.split("|"))
    assert (seed, kl) == ("0", f"{second['ppo']['kl']:.1f}")
    assert wins == " → ".join(f"{each['ppo']['win_rate_vs_sft']:.2f}" for each in (first, second))
    assert gold_rewards.split(" → ")[0] == f"{first['ppo']['gold_before']:.2f}"
    assert models.count("(") == 2
    assert refreshed.endswith(f"→ {second['reward_model']['fresh_accuracy_gold']:.3f}")
    assert mean.split("|")[3].strip() == f"{second['ppo']['win_rate_vs_sft']:.2f} ± 0.00"


def test_folder_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"without a readable report\.json"):
        rows.tables([tmp_path])
    (tmp_path / "report.json").write_text('{"rounds": []}')
    with pytest.raises(ConfigError, match="finished quickstarts"):
        rows.tables([tmp_path])


def test_reward_model_stage_reads_the_rankings(written: tuple[RunConfig, Files]) -> None:
    config, files = written
    read = load_preferences(round_config(config, 1))
    expected = [
        (row["prompt"], pair)
        for number in (0, 1)
        for row in read_rows(files.of_round(number, "rankings"))
        for pair in pairs(row)
    ]
    found = []
    for ranking in (*read.train, *read.heldout):
        assert isinstance(ranking, RankedResponses)
        found += [(ranking.prompt, (ranking.texts[i], ranking.texts[j])) for i, j in ranking.pairs]
    assert sorted(found) == sorted(expected)
    assert len(found) > 1_000


def test_calibration_bins_sum_to_the_calibration_error() -> None:
    rng = random.Random(1)
    margins = [rng.gauss(0.5, 1.5) for _ in range(400)]
    bins = figures.calibration_bins(margins)
    assert sum(one.count for one in bins) == 400
    gap = sum(one.count * abs(one.confidence - one.accuracy) for one in bins) / 400
    assert gap == pytest.approx(expected_calibration_error(margins))


def test_picture_shows_every_round_and_its_caption_the_report(
    written: tuple[RunConfig, Files], tmp_path: Path
) -> None:
    run = written[0].folder.root
    rounds_ = json.loads((run / "report.json").read_text())["rounds"]
    first, again = tmp_path / "first.svg", tmp_path / "again.svg"
    caption = picture.draw(run, first)
    picture.draw(run, again)
    assert first.read_bytes() == again.read_bytes()
    assert first.stat().st_size < 150_000
    course = [rounds_[0]["ppo"]["gold_before"], *(one["ppo"]["gold_after"] for one in rounds_)]
    assert " → ".join(f"{value:.2f}" for value in course) in caption
    assert caption.endswith("KL to SFT 2.5 nats an answer")

    # Other figures give another picture.
    other = tmp_path / "run"
    shutil.copytree(run, other)
    rows = other / "round-1" / "metrics_ppo.jsonl"
    rows.write_text(rows.read_text().replace('"kl": 1.5', '"kl": 4.5'))
    picture.draw(other, tmp_path / "other.svg")
    assert (tmp_path / "other.svg").read_bytes() != first.read_bytes()

    with pytest.raises(ConfigError, match=r"^run: got .*, without the report of one"):
        picture.draw(tmp_path, first)
    assert picture.main([str(tmp_path), str(first)]) == 2
