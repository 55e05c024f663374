"""Rewards that are not one model in local runs: a function, from SFT to right answers, and several terms."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examples.arithmetic import make
from examples.arithmetic.rewards import correct

FOLDER = Path(make.__file__).parent
TERMS = """
[reward]
engine = "combined"

[reward.combined]
rule = "constraint"
constrained = "value"
limit = 3.0
multiplier = 0.0
multiplier_step = 0.1

[reward.combined.terms.correct]
function = "rewards.py:correct"

[reward.combined.terms.value]
function = "rewards.py:value"

[reward.combined.terms.variety]
shape = "repetition"
"""
VALUE = """

def value(prompts, responses):
    return [float(response) if response.strip().isdigit() else 0.0 for response in responses]
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]


def run(verb: str, folder: Path, *flags: str) -> None:
    command = [sys.executable, "-m", "fairlead.cli", verb, str(folder / "run.toml"), *flags]
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent.parent)}
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=1_500)


def lines(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example after SFT."""
    folder = tmp_path_factory.mktemp("sums")
    for name in ("run.toml", "rewards.py"):
        shutil.copy(FOLDER / name, folder)
    make.make(folder)
    run("sft", folder)
    return folder


def test_rewards_of_the_example():
    assert correct(["3 + 4 =", "5 + 5 ="], [" 7", "9"]) == [1.0, 0.0]


def test_policy_learns_the_sums_that_the_function_rewards(tuned: Path, tmp_path: Path):
    shutil.copytree(tuned, tmp_path, dirs_exist_ok=True)
    run("ppo", tmp_path)
    folder = tmp_path / "runs" / "arithmetic"
    result = json.loads((folder / "result_ppo.json").read_text())
    assert (result["tasks_lost"], result["tasks_duplicated"]) == (0, 0)
    updates = lines(folder / "metrics_ppo.jsonl")
    assert updates[0]["reward"] < 0.65  # half of the demonstrations are wrong
    assert [line["eval_reward"] for line in updates if "eval_reward" in line][-1] >= 0.9


def test_multiplier_of_a_constraint_brings_its_term_below_the_limit(tuned: Path, tmp_path: Path):
    shutil.copytree(tuned, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "run.toml"
    before, _, rest = file.read_text().partition("[reward]")
    file.write_text(before + TERMS + "\n[sampling]" + rest.partition("[sampling]")[2])
    with (tmp_path / "rewards.py").open("a") as source:
        source.write(VALUE)
    run("ppo", tmp_path, "--set", "ppo.updates=30", "--set", "evaluation.every_updates=30")
    folder = tmp_path / "runs" / "arithmetic"
    updates = lines(folder / "metrics_ppo.jsonl")
    assert updates[0]["term_value"] > 3.5
    assert updates[-1]["term_value"] < 3
    assert updates[0]["reward_multiplier"] == 0
    assert max(line["reward_multiplier"] for line in updates) > 0.1
    assert set(lines(folder / "samples_ppo.jsonl")[0]["terms"]) == {"correct", "value", "variety"}
    assert {"eval_term_correct", "eval_term_value"} <= updates[-1].keys()
