"""Rankings with ties: every pair once in either file format; ensembles and the centring of scores."""

from __future__ import annotations

import itertools
import json
import math
import random

import pytest
import torch

from fairlead.config import load
from fairlead.config.base import ComputeSection
from fairlead.config.serving import RewardSection
from fairlead.data.comparisons import Preference, RankedResponses, comparisons
from fairlead.data.encoding import encode_prompt, encode_response
from fairlead.data.lines import Line
from fairlead.data.records import is_heldout
from fairlead.judgments.calibration import accuracy
from fairlead.judgments.shares import wilson_interval
from fairlead.nn.ensemble import load_ensemble
from fairlead.nn.loading import weights_digest
from fairlead.nn.reward_model import load_reward_model
from tests.tiny import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trainer import calibration
from trainer import rankings as data
from trainer.reward_model import baselines, loss
from trainer.reward_model.evaluate import evaluate, mean_score, score_spread
from trainer.reward_model.train import train

CPU = ComputeSection(device="cpu")
RECORDS = [
    RankedResponses("w1 w2", ("w3", "w4 w5", "w6", "w7 w8 w9"), (-1.0, -2.0, -2.0, -4.0)),
    RankedResponses("w1 w2", ("w10", "w11 w12"), (0.2, 0.9)),
    RankedResponses("w5", ("w3 w3", "w4", "w9"), (0.50, 0.56, 0.70), tie_margin=0.1),
    RankedResponses("w6", ("w3", "w4"), (1.0, 1.0)),
    Preference("w7 w8", "w20", "w21 w22"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny_reward_model(tmp_path_factory.mktemp("rm"))
    found = load_reward_model(str(path), CPU)
    found.model.double()
    found.head.double()
    return found


@torch.no_grad()
def single(model, prompt: str, response: str) -> float:
    tokenizer = tiny_tokenizer()
    ids = [*encode_prompt(tokenizer, prompt), *encode_response(tokenizer, response, eos=True)]
    return float(model.scores(torch.tensor([ids]), torch.tensor([len(ids)])))


def naive_loss(model) -> float:
    """A double loop over every ranking with a forward pass per pair, then the mean over rankings."""
    means = []
    for record in RECORDS[:3]:
        terms = []
        for i, j in itertools.product(range(len(record.texts)), repeat=2):
            gap = record.worths[i] - record.worths[j]
            if gap > 0 and gap >= record.tie_margin:
                margin = single(model, record.prompt, record.texts[i]) - single(
                    model, record.prompt, record.texts[j]
                )
                terms.append(math.log1p(math.exp(-margin)))
        means.append(sum(terms) / len(terms))
    pair = RECORDS[4]
    margin = single(model, pair.prompt, pair.chosen) - single(model, pair.prompt, pair.rejected)
    means.append(math.log1p(math.exp(-margin)))
    return sum(means) / len(means)


@pytest.mark.parametrize("max_tokens", [1, 1000])
def test_loss_matches_a_naive_double_loop(model, max_tokens):
    encoded = data.encode(RECORDS, tiny_tokenizer(), max_tokens=100)
    parts = loss.micro_batch_losses(model, encoded.rankings, max_tokens=max_tokens)
    assert sum(float(part.detach()) for part in parts) == pytest.approx(naive_loss(model), abs=1e-12)


@pytest.mark.parametrize(("coefficient", "smoothing"), [(0.5, 0.0), (0.0, 0.1), (2.0, 0.3)])
def test_margin_and_label_smoothing_match_the_formulas(model, coefficient, smoothing):
    """TRL's RewardTrainer: −log σ(r_chosen − r_rejected − margin); smoothing as in conservative DPO."""
    line = {"prompt": "w7", "chosen": "w20", "rejected": "w21 w22", "margin": 1.5}
    scored = [{"text": "w3", "score": 0.9}, {"text": "w4 w5", "score": 0.2}, {"text": "w6", "score": -1}]
    ranked = [{"text": "w3", "rank": 1}, {"text": "w4", "rank": 2}]
    lines = [line, {"prompt": "w1", "responses": scored}, {"prompt": "w2", "responses": ranked}]
    records = [comparisons(Line("f", 1, one), tie_margin=0.0) for one in lines]
    encoded = data.encode(records, tiny_tokenizer(), max_tokens=100)
    assert [ranking.margins for ranking in encoded.rankings] == [
        (1.5,),
        (pytest.approx(0.7), pytest.approx(1.9), pytest.approx(1.2)),
        (0.0,),
    ]
    expected = 0.0
    for record, ranking in zip(records, encoded.rankings, strict=True):
        terms = []
        for pair, margin in zip(record.compared, ranking.margins, strict=True):
            winner, loser = (single(model, record.prompt, text) for text in (pair.winner, pair.loser))
            right = 1 / (1 + math.exp(-(winner - loser - coefficient * margin)))
            terms.append(-(1 - smoothing) * math.log(right) - smoothing * math.log(1 - right))
        expected += sum(terms) / len(terms) / 3
    found = loss.RankingLoss(coefficient, smoothing)
    parts = loss.micro_batch_losses(model, encoded.rankings, max_tokens=1, loss=found)
    assert sum(float(part.detach()) for part in parts) == pytest.approx(expected, abs=1e-12)


def test_rankings_are_packed_by_length_where_that_is_cheaper():
    sizes = ((40, 2), (9, 4), (38, 3), (10, 2))
    made = [data.EncodedRanking(((1,) * length,) * rows, ((0, 1),)) for length, rows in sizes]

    def shapes(**budget) -> list[list[int]]:
        return [[one.longest for one in group] for group in data.pack(made, **budget)]

    assert shapes(max_tokens=10_000, overhead=10_000) == [[40, 38, 10, 9]]
    assert shapes(max_tokens=10_000, overhead=20) == [[40, 38], [10, 9]]
    assert shapes(max_tokens=10_000, overhead=1) == [[40], [38], [10], [9]]
    assert shapes(max_tokens=199, overhead=20) == [[40], [38], [10, 9]]


def test_ties_are_counted_and_each_response_is_read_once(model):
    encoded = data.encode(RECORDS, tiny_tokenizer(), max_tokens=100)
    assert [len(ranking.sequences) for ranking in encoded.rankings] == [4, 2, 3, 2]
    assert [len(ranking.pairs) for ranking in encoded.rankings] == [5, 1, 2, 1]
    assert ("w4 w5", "w6") not in encoded.rankings[0].text_pairs
    assert encoded.rankings[2].text_pairs == [("w9", "w3 w3"), ("w9", "w4")]
    assert (encoded.ties, encoded.skipped) == (3, 1)


def test_tie_changes_no_weights(model):
    def gradient(*records) -> torch.Tensor:
        model.model.zero_grad()
        model.head.zero_grad()
        rankings = data.encode(records, tiny_tokenizer(), max_tokens=100).rankings
        for part in loss.micro_batch_losses(model, rankings, max_tokens=1000):
            part.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    ranking = gradient(RankedResponses("w1", ("w2", "w3", "w4"), (2.0, 1.0, 1.0)))
    pairs = gradient(Preference("w1", "w2", "w3"), Preference("w1", "w2", "w4"))
    untied = gradient(RankedResponses("w1", ("w2", "w3", "w4"), (2.0, 1.0, 0.0)))
    assert pairs.abs().max() > 1e-3
    assert torch.allclose(ranking, pairs, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(ranking, untied, rtol=1e-3)


def test_ranking_equals_its_pairs_written_line_by_line():
    texts = ("w3", "w4 w5", "w6", "w3")  # two answers are equal
    ranking = RankedResponses("w1", texts, (4.0, 3.0, 2.0, 1.0))
    lines = [Preference("w1", a, b) for a, b in itertools.combinations(texts, 2) if a != b]
    whole, pairs = (data.encode(records, tiny_tokenizer(), max_tokens=99) for records in ([ranking], lines))
    assert whole.rankings == pairs.rankings
    assert len(whole.rankings[0].sequences) == 3
    assert (whole.ties, pairs.ties) == (1, 0)


def test_interval_by_prompt_resamples_prompts():
    rng = random.Random(0)
    signs = [1.0 if rng.random() < 0.7 else -1.0 for _ in range(200)]
    share = accuracy(signs)
    once = {str(number): [sign] for number, sign in enumerate(signs)}
    ten = {str(number): [sign] * 10 for number, sign in enumerate(signs)}
    expected = wilson_interval(share, 200)
    assert calibration.interval_by_prompt(once, seed=1) == pytest.approx(expected, abs=0.015)
    assert calibration.interval_by_prompt(ten, seed=1) == pytest.approx(expected, abs=0.015)
    assert calibration.interval_by_prompt({}, seed=1) == (0.0, 1.0)
    right = {str(prompt): [1.0, 1.0] for prompt in range(10)}  # nothing to resample: Wilson's of 10 prompts
    assert calibration.interval_by_prompt(right, seed=1) == pytest.approx((0.722, 1.0), abs=0.001)


def test_bag_of_words_matches_the_optimum_by_bisection():
    pairs = [("good x", "x bad")] * 3 + [("bad", "good")]
    low, high = 0.0, 3.0
    for _ in range(60):  # weights w and −w: the derivative of 4 losses and of the penalty w²
        w = (low + high) / 2
        slope = 3 * 2 / (1 + math.exp(2 * w)) - 2 / (1 + math.exp(-2 * w)) - 2 * w
        low, high = (w, high) if slope > 0 else (low, w)
    found = baselines.bag_of_words(pairs, [("good", "bad"), ("bad x", "unseen"), ("unseen", "x")])
    assert found == pytest.approx([2 * low, -low, 0.0], abs=1e-4)
    assert baselines.longer_wins([("a b c", "d"), ("", "d")]) == [2.0, -1.0]
    assert baselines.bag_of_words([], [("a", "b")]) == [0.0]


def configured(folder, **more):
    rng = random.Random(0)
    rows = []
    for n in range(90):
        numbers = rng.sample(range(40, 56), k=3)  # smaller numbers are better
        by_rank = [{"text": f"w{x} w30", "rank": 1 + sum(y < x for y in numbers)} for x in numbers]
        rows.append({"prompt": f"w{n % 30}", "responses": by_rank})
    (folder / "r0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:60]))
    tied = {"prompt": "w1", "responses": [{"text": t, "score": 0.5} for t in ("w2", "w3")]}
    (folder / "r1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows[60:], tied]))
    demonstrations = [{"prompt": f"w{n % 30}", "completion": f"w{31 + n % 9}"} for n in range(50)]
    (folder / "d.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*demonstrations, {"text": "w1 w1 w1"}])
    )
    overrides = {
        "runs": str(folder / "runs"),
        "base": str(folder),
        "data.preferences": ["r0.jsonl", "r1.jsonl"],
        "data.demonstrations": "d.jsonl",
        "data.heldout_fraction": 0.3,
        "reward_model.learning_rate": 3e-3,
        "reward_model.epochs": 3,
        "reward_model.batch_size": 8,
        "reward_model.device": "cpu",
        "reward.device": "cpu",
        "observe.tensorboard": False,
        **more,
    }
    config = load(overrides=overrides)
    tiny_causal_lm(config.folder.sft_model)
    return config, demonstrations


def demonstration_scores(model, config, demonstrations, *, heldout: bool) -> list[float]:
    side = [row for row in demonstrations if is_heldout(config, row["prompt"]) is heldout]
    return [single(model, row["prompt"], row["completion"]) for row in side]


def test_stage_reads_several_files_and_centres_demonstrations(tmp_path):
    config, demonstrations = configured(tmp_path)
    result = train(config)
    assert result["accuracy"] > 0.85
    assert result["rankings"] + result["heldout_comparisons"] / 3 == 90
    assert (result["ties"], result["skipped"], result["prompts"]) == (1, 1, 30)
    assert 0.3 < result["baselines"]["longer_wins"]["accuracy"] < 0.7
    assert result["baselines"]["bag_of_words"]["accuracy"] > 0.8
    low, high = result["accuracy_interval_by_prompt"]
    assert low <= result["accuracy"] <= high
    saved = load_reward_model(str(config.folder.reward_model), CPU)
    assert saved.temperature == result["temperature"] > 0
    known = demonstration_scores(saved, config, demonstrations, heldout=False)
    assert abs(sum(known) / len(known)) < 1e-5
    assert max(known) - min(known) > 0.01
    unseen = demonstration_scores(saved, config, demonstrations, heldout=True)
    assert result["heldout_demonstrations_mean"] == pytest.approx(sum(unseen) / len(unseen), abs=1e-5)


def test_stage_is_done_after_its_result_is_written(tmp_path):
    config, _ = configured(tmp_path, **{"reward_model.epochs": 1})
    train(config)
    phases = [json.loads(line) for line in config.folder.phases.read_text().splitlines()]
    assert [entry["phase"] for entry in phases] == ["start", "train", "evaluate", "publish", "done"]
    assert phases[-1]["start"] >= config.folder.result("reward_model").stat().st_mtime
    progress = json.loads(config.folder.progress.read_text())
    assert (progress["phase"], progress["doing"], progress["eta_seconds"]) == ("done", None, 0.0)


def test_measurements_report_how_much_is_done(model):
    rankings = data.encode(RECORDS, tiny_tokenizer(), max_tokens=100).rankings
    sequences = [ranking.sequences[0] for ranking in rankings]
    found: list[tuple[str, int, int]] = []

    def doing(what: str, done: int, total: int) -> None:
        found.append((what, done, total))

    quiet = [
        evaluate(model, rankings, max_tokens=30),
        score_spread(model, rankings, max_tokens=30),
        mean_score(model, sequences, max_tokens=10),
    ]
    assert quiet == [
        evaluate(model, rankings, max_tokens=30, doing=doing),
        score_spread(model, rankings, max_tokens=30, doing=doing),
        mean_score(model, sequences, max_tokens=10, doing=doing),
    ]
    by_activity = {what: [done for one, done, _ in found if one == what] for what, _, _ in found}
    assert list(by_activity) == ["comparing held-out responses", "scoring rankings", "scoring demonstrations"]
    assert {total for _, _, total in found} == {len(rankings)} == {4}
    for steps in by_activity.values():
        assert steps[0] == 0
        assert steps == sorted(set(steps))
        assert len(steps) > 1


def test_ensemble_members_differ_and_the_first_equals_the_single_model(tmp_path):
    few = {"reward_model.epochs": 1}
    config, demonstrations = configured(tmp_path, **few)
    train(config)
    single = load_reward_model(str(config.folder.reward_model), CPU)
    config, _ = configured(tmp_path, **few, **{"reward_model.ensemble_size": 2})
    result = train(config)
    served = load_ensemble(str(config.folder.reward_model), RewardSection(device="cpu"))
    assert len({weights_digest(member.model) for member in served.members}) == 2
    assert weights_digest(served.members[0].model) == weights_digest(single.model)
    assert len(result["member_accuracies"]) == 2
    if not math.isnan(result["temperature"]):
        assert served.temperature == result["temperature"]
    assert all(member.temperature == 0 for member in served.members)
    for member in served.members:
        known = demonstration_scores(member, config, demonstrations, heldout=False)
        assert abs(sum(known) / len(known)) < 1e-5
    lines = [json.loads(line) for line in config.folder.metrics("reward_model").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert {line["member"] for line in lines if "loss" in line} == {0, 1}
