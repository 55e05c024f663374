"""The example with a reward function, from SFT to RL: most answers of the policy are right at its end."""

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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]


def test_rewards_of_the_example():
    assert correct(["3 + 4 =", "9 + 9 ="], [" 7", "17"]) == [1.0, 0.0]


def test_policy_learns_the_sums_that_the_function_rewards(tmp_path: Path):
    for name in ("run.toml", "rewards.py"):
        shutil.copy(FOLDER / name, tmp_path)
    make.make(tmp_path)
    for verb in ("sft", "ppo"):
        command = [sys.executable, "-m", "fairlead", verb, str(tmp_path / "run.toml")]
        environment = os.environ | {"PYTHONPATH": str(FOLDER.parent.parent)}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=1_500)
    folder = tmp_path / "runs" / "arithmetic"
    result = json.loads((folder / "result_ppo.json").read_text())
    assert (result["tasks_lost"], result["tasks_duplicated"]) == (0, 0)
    lines = [json.loads(line) for line in (folder / "metrics_ppo.jsonl").read_text().splitlines()]
    rewards = [line["eval_reward"] for line in lines if "eval_reward" in line]
    assert rewards[-1] >= 0.9
    assert lines[0]["reward"] < 0.6
