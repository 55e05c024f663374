"""SFT and reward-model training continue bit for bit after interruptions, from their own checkpoint only."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fairlead.config import RunConfig
from tests.ranks import Ranks
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.stage_world import reward_model_run, sft_run
from tests.unit.trainer.stopped_stages import check_stopped, digests, write_runs
from trainer.reward_model import train as reward_model
from trainer.sft import train as sft
from trainer.stage_checkpoint import Position, StageCheckpoints, root, uninterrupted

SFT = {"epochs": 3, "threads": 1}
LIMITS = {"lost_seconds": 60.0, "stall_seconds": 60.0}
"""Limits of ranks that a busy machine does not exceed by itself."""
REWARD_MODEL = {"epochs": 2, "ensemble_size": 2, "threads": 1}


@pytest.fixture
def stops_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, as in the process of a stage."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)


def lines(path: Path) -> list[dict[str, float]]:
    """Return the lines of a file, without one that is being written."""
    complete, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
    return [json.loads(line) for line in complete.splitlines()]


def steps(config: RunConfig, stage: str) -> list[int]:
    return [int(line["step"]) for line in lines(config.folder.metrics(stage)) if "loss" in line]


def interrupted(train: Callable[[RunConfig], object], config: RunConfig, stage: str, *, after: int) -> bool:
    """Train until SIGTERM arrives, some steps after the start; return whether it came before the end."""
    begun = len(steps(config, stage))
    ended = threading.Event()

    def kill() -> None:
        while not ended.is_set():
            if len(steps(config, stage)) >= begun + after:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.001)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        train(config)
        return False
    except SystemExit:
        return True
    finally:
        ended.set()
        killer.join()


def comparable(config: RunConfig, stage: str) -> dict[str, object]:
    found = json.loads(config.folder.result(stage).read_text())
    found.pop("seconds")
    return found


@pytest.mark.parametrize("every_steps", [1, 4, 1_000])
def test_interrupted_sft_gives_the_same_bits(tmp_path: Path, stops_on_sigterm: None, every_steps: int):
    whole = sft_run(tmp_path / "whole", **SFT)
    sft.train(whole)
    config = sft_run(tmp_path / "cut", **SFT).model_copy(
        update={"checkpoint": whole.checkpoint.model_copy(update={"every_steps": every_steps})}
    )
    times = 0
    while interrupted(sft.train, config, "sft", after=5):
        times += 1
    assert times >= 3
    assert digests(config.folder.sft_model) == digests(whole.folder.sft_model)
    assert comparable(config, "sft") == comparable(whole, "sft")
    assert steps(config, "sft") == steps(whole, "sft") == list(range(1, len(steps(whole, "sft")) + 1))
    assert not root("sft", config).exists()


@pytest.mark.parametrize("lora", [{}, {"lora.rank": 2, "lora.dropout": 0.2}], ids=["whole", "lora"])
def test_interrupted_ensemble_gives_the_same_bits(tmp_path: Path, stops_on_sigterm: None, lora: dict):
    settings = {**REWARD_MODEL, "path": str(tiny_causal_lm(tmp_path / "base")), **lora}
    whole = reward_model_run(tmp_path / "whole", comparisons=200, **settings)
    reward_model.train(whole)
    config = reward_model_run(tmp_path / "cut", comparisons=200, **settings)
    times = 0
    while interrupted(reward_model.train, config, "reward_model", after=6):
        times += 1
    assert times >= 3
    assert digests(config.folder.reward_model) == digests(whole.folder.reward_model)
    assert comparable(config, "reward_model") == comparable(whole, "reward_model")
    assert steps(config, "reward_model") == steps(whole, "reward_model")
    assert not root("reward_model", config).exists()


def test_checkpoint_of_other_inputs_is_not_used(tmp_path: Path, stops_on_sigterm: None, caplog):
    config = sft_run(tmp_path, **SFT)
    assert interrupted(sft.train, config, "sft", after=3)
    assert root("sft", config).exists()
    changed = config.model_copy(update={"sft": config.sft.model_copy(update={"learning_rate": 1e-3})})
    sft.train(changed)
    assert "was made with different settings, data or initial model" in caplog.text
    assert steps(changed, "sft") == list(range(1, len(steps(changed, "sft")) + 1))
    assert not root("sft", config).exists()


def gguf_sft_run(folder: Path) -> RunConfig:
    config = sft_run(folder)
    model = config.model.model_copy(update={"path": str(folder / "model.gguf")})
    return config.model_copy(update={"model": model})


@pytest.mark.parametrize("changed", ["model.gguf", "tokenizer.json"])
def test_checkpoint_of_a_changed_gguf_file_is_not_used(tmp_path: Path, changed: str, caplog):
    """A file of the same name and size counts by its contents, and so does the tokenizer next to it."""
    for name in ("model.gguf", "tokenizer.json"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    for config in (
        gguf_sft_run(tmp_path),
        reward_model_run(tmp_path, comparisons=3, path=str(tmp_path / "model.gguf")),
    ):
        stage = "sft" if config.model.path else "reward_model"
        checkpoints = StageCheckpoints(stage, config, sequences=[(1, 2)])
        checkpoints.save(Position(step=5), {"model": {"weight": torch.ones(2)}})
        assert StageCheckpoints(stage, config, sequences=[(1, 2)]).load() is not None
        file = tmp_path / changed
        file.write_bytes(bytes(reversed(file.read_bytes())))
        assert StageCheckpoints(stage, config, sequences=[(1, 2)]).load() is None
        assert f"{stage} starts from the beginning" in caplog.text


def test_damaged_checkpoint_is_skipped(tmp_path: Path, stops_on_sigterm: None, caplog):
    config = sft_run(tmp_path, **SFT)
    assert interrupted(sft.train, config, "sft", after=3)
    for file in root("sft", config).rglob("model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    sft.train(config)
    assert "is damaged and is skipped" in caplog.text
    assert "sft starts from the beginning: all its checkpoints are damaged" in caplog.text
    assert config.folder.result("sft").exists()


def test_signal_within_a_step_takes_effect_after_it(stops_on_sigterm: None):
    done = []

    def step() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("step")
        done.append("not reached")

    with pytest.raises(SystemExit):
        step()
    assert done == ["step"]


@pytest.mark.slow
def test_ranks_stop_together_during_an_evaluation_of_a_reward_model(tmp_path: Path):
    """SFT: see test_two_ranks.py."""
    target = "tests.unit.trainer.stopped_stages:stop_in_evaluation"
    files = write_runs("reward_model", tmp_path)
    check_stopped(Ranks(2, target, "reward_model", *files, settings=LIMITS).results(), tmp_path)


def test_loss_that_is_not_finite_survives_the_checkpoint(tmp_path: Path):
    config = sft_run(tmp_path, **SFT)
    checkpoints = StageCheckpoints("sft", config, sequences=[(1, 2)])
    checkpoints.save(Position(step=2, epoch=1, losses=[1.5, float("nan")]), {})
    found = checkpoints.load()
    assert found is not None
    position = Position.from_state(found.state)
    assert (position.step, position.epoch, position.losses[0]) == (2, 1, 1.5)
    assert position.losses[1] != position.losses[1]
