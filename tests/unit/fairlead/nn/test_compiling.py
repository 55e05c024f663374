"""A compiled reward model gives equal scores; loading reports when it cannot be compiled."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fairlead.config.serving import RewardSection
from fairlead.errors import ModelLoadError
from services.reward.scorer import RewardScorer
from tests.tiny import tiny_reward_model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_model_gives_equal_scores(tmp_path: Path):
    path = str(tiny_reward_model(tmp_path))
    sequences = [(5, 6, 7), (8,) * 40, (9, 10)]
    expected = RewardScorer(path, RewardSection(device="cpu", compile=False)).score(sequences)
    compiled = RewardSection(device="cpu", compile=True, pack_weights=False)
    if shutil.which("c++") is None and shutil.which("g++") is None:
        with pytest.raises(ModelLoadError, match=r"cannot be compiled .*: set reward.compile = false"):
            RewardScorer(path, compiled)
        return
    found = RewardScorer(path, compiled).score(sequences)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
