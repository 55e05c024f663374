"""The score quantiles for the guard of PPO, computed from every response, one at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fairlead.config.base import ComputeSection
from fairlead.data.records import Preference
from fairlead.nn.reward_model import load_reward_model
from tests.tiny import tiny_reward_model, tiny_tokenizer
from trainer import rankings as data
from trainer.reward_model.evaluate import score_spread


@torch.no_grad()
def test_quantiles_are_those_of_the_scores_of_all_training_responses(tmp_path):
    model = load_reward_model(str(tiny_reward_model(tmp_path / "model")), ComputeSection(device="cpu"))
    pairs = [
        Preference(f"w{n}", *pair)
        for n in range(30)
        for pair in itertools.combinations([f"w{n + 1}", f"w{n + 2} w{n}", f"w{2 * n % 50} w3 w{n}"], 2)
    ]
    rankings = data.encode(pairs, tiny_tokenizer(), max_tokens=50).rankings
    scores = [
        float(model.scores(torch.tensor([sequence]), torch.tensor([len(sequence)])))
        for ranking in rankings
        for sequence in ranking.sequences
    ]
    expected = list(np.quantile(scores, [0.005, 0.995]))
    quantiles, deviation = score_spread(model, rankings, max_tokens=40)
    assert quantiles == pytest.approx(expected, abs=1e-4)
    assert deviation == pytest.approx(np.std(scores), rel=1e-4)
    assert min(scores) < expected[0] < expected[1] < max(scores)
