"""Ensembles in the reward service: rules, version, and scores that depend on the sequence only."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch

from fairlead.config.serving import BatchingSection, RewardSection
from fairlead.errors import ModelLoadError
from fairlead.nn.ensemble import EnsembleTemperature, combine, member_paths, write_members
from fairlead.types import TextPair
from services.reward.scorer import RewardScorer
from tests.tiny import tiny_reward_model, tiny_tokenizer

RULES = ("mean", "min", "mean_minus_std")


def section(rule: str = "mean", weight: float = 0.5) -> RewardSection:
    return RewardSection(
        device="cpu", ensemble=rule, ensemble_std_weight=weight, batching=BatchingSection(max_items=64)
    )


def ensemble(folder, *seeds: int):
    folder.mkdir(parents=True, exist_ok=True)
    for path, seed in zip(write_members(folder, len(seeds)), seeds, strict=True):
        tiny_reward_model(path, seed=seed, bias=0.1 * seed)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ensemble(tmp_path_factory.mktemp("e") / "rm", 0, 1, 2)


@pytest.fixture(scope="module")
def sequences():
    rng = random.Random(5)
    return [tuple(rng.randrange(60) for _ in range(length)) for length in (1, 2, 5, 9, 30, 100) * 3]


def test_rules_match_hand_computed_values():
    scores = torch.tensor([[1.0, -2.0], [3.0, -2.0], [8.0, -2.0]])
    assert combine(scores, rule="mean", std_weight=9.0).tolist() == [4.0, -2.0]
    assert combine(scores, rule="min", std_weight=9.0).tolist() == [1.0, -2.0]
    # deviations −3, −1, 4: variance 26 / 3
    expected = 4 - 0.5 * (26 / 3) ** 0.5
    found = combine(scores, rule="mean_minus_std", std_weight=0.5)
    assert found.tolist() == pytest.approx([expected, -2.0], abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_scores_are_the_rule_on_member_scores_in_any_batch(folder, sequences, rule):
    members = [RewardScorer(path, section()) for path in member_paths(str(folder))]
    single = torch.tensor([[member.score([one])[0] for one in sequences] for member in members])
    assert float(single.std(dim=0).min()) > 1e-3
    expected = combine(single.double(), rule=rule, std_weight=0.5).tolist()
    scorer, rng = RewardScorer(str(folder), section(rule)), random.Random(rule)
    found: dict[int, float] = {}
    order = rng.sample(range(len(sequences)), k=len(sequences))
    while order:
        size = rng.randint(1, len(order))
        batch, order = order[:size], order[size:]
        found.update(zip(batch, scorer.score([sequences[index] for index in batch]), strict=True))
    for index, value in enumerate(expected):
        assert abs(found[index] - value) <= 1e-5 * max(1.0, abs(value))


@pytest.mark.parametrize("rule", RULES)
def test_ensemble_of_one_equals_the_model(tmp_path, sequences, rule):
    one = RewardScorer(str(ensemble(tmp_path / "one", 3)), section(rule))
    model = RewardScorer(str(tiny_reward_model(tmp_path / "model", seed=3, bias=0.3)), section(rule))
    assert one.score(sequences) == model.score(sequences)
    assert one.info.model_version == model.info.model_version


def test_version_covers_every_member_and_the_rule(tmp_path, folder):
    version = RewardScorer(str(folder), section()).info.model_version
    again = RewardScorer(str(folder), section()).info
    assert (again.model_version, again.model.model_id) == (version, str(folder))
    assert RewardScorer(str(folder), section("min")).info.model_version != version
    others = {
        RewardScorer(str(ensemble(tmp_path / str(seeds), *seeds)), section()).info.model_version
        for seeds in ((0, 1, 3), (0, 1), (0, 2, 1))
    }
    assert len(others | {version}) == 4


def test_version_covers_the_bias(tmp_path):
    versions = {
        RewardScorer(str(tiny_reward_model(tmp_path / str(bias), bias=bias)), section()).info.model_version
        for bias in (0.0, 0.25)
    }
    assert len(versions) == 2


def test_text_is_read_by_the_tokenizer_of_the_members(folder):
    scorer = RewardScorer(str(folder), section())
    word = tiny_tokenizer().convert_tokens_to_ids
    assert scorer.encode([TextPair("w1", "w2")]) == [(1, word("w1"), word("w2"), 2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a valid list of members"),
        ('{"members": 3}', "is not a valid list of members"),
        ('{"members": []}', "lists no members"),
        ('{"members": ["member-0", "absent"]}', "no model folder"),
    ],
)
def test_damaged_ensemble_is_refused(tmp_path, content, message):
    path = ensemble(tmp_path, 0)
    (path / "ensemble.json").write_text(content)
    with pytest.raises(ModelLoadError, match=message):
        RewardScorer(str(path), section())


def test_temperature_applies_only_to_the_rule_it_was_fitted_for(tmp_path):
    folder = ensemble(tmp_path, 0, 1)
    write_members(folder, 2, temperature=EnsembleTemperature(2.5, "mean_minus_std", 0.5))
    temperatures = {
        (rule, weight): RewardScorer(str(folder), section(rule, weight)).info.calibration_temperature
        for rule, weight in (("mean", 0.5), ("mean_minus_std", 0.5), ("mean_minus_std", 0.6))
    }
    assert list(temperatures.values()) == [0.0, 2.5, 0.0]
    configured = section().model_copy(update={"calibration_temperature": 4.0})
    assert RewardScorer(str(folder), configured).info.calibration_temperature == 4.0


def test_invalid_temperature_is_refused(tmp_path):
    folder = ensemble(tmp_path, 0)
    for content in ({"temperature": 0, "rule": "mean", "std_weight": 1}, {"temperature": 2}):
        (folder / "ensemble.json").write_text(json.dumps({"members": ["member-0"], **content}))
        with pytest.raises(ModelLoadError, match="temperature"):
            RewardScorer(str(folder), section())


def test_members_of_different_tokenizers_are_refused(tmp_path, folder):
    path = shutil.copytree(folder, tmp_path / "mixed")
    file = path / "member-1" / "tokenizer.json"
    definition = json.loads(file.read_text())
    definition["post_processor"] = None
    file.write_text(json.dumps(definition))
    with pytest.raises(ModelLoadError, match="different tokenizers"):
        RewardScorer(str(path), section())
