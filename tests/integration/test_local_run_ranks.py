"""`fairlead ppo` with a trainer of several ranks, through the real queue and services."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.config import RunFolder
from fairlead.config.base import ComputeSection
from fairlead.nn.loading import load_causal_lm
from tests.integration.ppo_run import ONLINE_DPO, check, make, started

UPDATES = 3
TIMES = ("time", "seconds", "tokens_per_second", "_wait", "queue", "lag", "idle")


def run(folder: Path, *settings: str) -> RunFolder:
    """Run PPO to its end."""
    folder.mkdir()
    file = make(folder, updates=UPDATES, num_samples=4 if "ppo.estimator=pairs" in settings else 1)
    with started(file, *(part for setting in settings for part in ("--set", setting))) as run:
        code, output = run.finish(seconds=400)
        assert code == 0, output + run.log_tails()
        check(run.folder)
        return run.folder


def figures(folder: RunFolder) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in folder.metrics("ppo").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not any(part in name for part in TIMES)}
        for line in lines
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("settings", "tensor_parallel"),
    [
        (["ppo.loss=ppo"], 1),
        (["ppo.lora.rank=2"], 1),
        (["ppo.estimator=reinforce++"], 2),
        ([f"{key}={value}" for key, value in ONLINE_DPO.items()], 1),
    ],
)
def test_two_ranks_have_the_figures_of_one(tmp_path: Path, settings: list[str], tensor_parallel: int):
    common = (*settings, "ppo.learning_rate=0.001")
    one = run(tmp_path / "one", *common)
    two = run(tmp_path / "two", *common, "ranks.per_node=2", f"ranks.tensor_parallel={tensor_parallel}")
    assert (two.checkpoints / f"1-{UPDATES}" / "rank-00001.safetensors").exists()
    ours, theirs = figures(two), figures(one)
    assert len(ours) == len(theirs) == UPDATES
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        assert {"reward", "kl", "policy_loss", "policy_gradient_norm"} <= mine.keys()
        assert ("value_loss" in mine) is not any("estimator" in setting for setting in settings)
        assert ("accuracy" in mine) is ("ppo.estimator=pairs" in settings)
        for name, value in other.items():
            if name == "accuracy":  # margins are 0 but for rounding in the first step
                continue
            assert mine[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    # What is saved at the end loads, and holds the weights of the last checkpoint.
    model = load_causal_lm(str(two.policy_model), ComputeSection(device="cpu"))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
