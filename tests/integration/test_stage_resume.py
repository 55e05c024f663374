"""SFT and reward-model training as processes that are killed ten times: the same weights to the bit."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fairlead.config import RunConfig
from fairlead.config.saving import save
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.stage_world import reward_model_run, sft_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

KILLS = 10


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def start(stage: str, config: RunConfig) -> subprocess.Popen[bytes]:
    file = config.folder.root / "config.toml"
    save(config, file)
    command = [sys.executable, "-m", f"trainer.{stage}", "--config", str(file)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def num_steps(config: RunConfig, stage: str) -> int:
    path = config.folder.metrics(stage)
    return sum(b'"loss"' in line for line in path.read_bytes().splitlines()) if path.exists() else 0


def kill_ten_times(stage: str, config: RunConfig) -> int:
    """Run the stage to its end; kill its process whenever it has done some steps; return the kills."""
    kills = 0
    while True:
        process = start(stage, config)
        begun = num_steps(config, stage)
        deadline = time.monotonic() + 120
        try:
            while process.poll() is None:
                if kills < KILLS and num_steps(config, stage) > begun + 5:
                    process.kill()
                assert time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            process.kill()
            process.wait()
        if process.returncode == 0:
            return kills
        assert process.returncode == -9
        kills += 1


@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_killed_stage_gives_the_same_bits(tmp_path: Path, stage: str):
    def config(name: str) -> RunConfig:
        if stage == "sft":
            made = sft_run(tmp_path / name, epochs=12, threads=1)
        else:
            path = str(tiny_causal_lm(tmp_path / "base")) if name == "whole" else str(tmp_path / "base")
            made = reward_model_run(tmp_path / name, comparisons=300, epochs=8, threads=1, path=path)
        return made.model_copy(update={"checkpoint": made.checkpoint.model_copy(update={"every_steps": 3})})

    whole = config("whole")
    cut = config("cut")
    process = start(stage, whole)
    assert process.wait(timeout=300) == 0
    assert kill_ten_times(stage, cut) == KILLS
    folder = "sft_model" if stage == "sft" else "reward_model"
    assert digests(getattr(cut.folder, folder)) == digests(getattr(whole.folder, folder))
    results = [json.loads(one.folder.result(stage).read_text()) for one in (cut, whole)]
    for result in results:
        result.pop("seconds")
    assert results[0] == results[1]
