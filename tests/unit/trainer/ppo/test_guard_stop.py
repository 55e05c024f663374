"""A guard ends a run: the trainer goes back to the last good checkpoint, reports why, and stays stopped."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from fairlead.errors import StoppedByGuard
from fairlead.local.run import is_finished, stopped_by_guard
from fairlead.nn.loading import load_tokenizer
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.test_train import Run, configured
from trainer.checkpoint import CheckpointStore
from trainer.lineage import read as read_lineage

# The learning rate is high enough to leave the reference within a few updates.
WILD = {
    "ppo.updates": 8,
    "ppo.learning_rate": 2e-2,
    "ppo.kl_coefficient": 0.0,
    "ppo.epochs": 4,
    "checkpoint.every_updates": 1,
    "guard.action": "stop",
    "guard.length_ratio_stop_below": 0.0,
    "guard.length_ratio_stop_above": 100,
    "guard.eos_ratio_stop_below": 0.0,
    "guard.repetition_stop_above": 100,
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return tiny_causal_lm(tmp_path_factory.mktemp("model"))


def sevens(answer: tuple[int, ...]) -> float:
    return float(sum(token == 7 for token in answer))


def curves(config) -> list[dict[str, float]]:
    return [json.loads(line) for line in config.folder.metrics("ppo").read_text().splitlines()]


@pytest.fixture(scope="module")
def kls(tmp_path_factory, model_path) -> list[float]:
    """KL of every update of a run without a stop; the limit of the test follows from it."""
    config = configured(tmp_path_factory.mktemp("free"), model_path, **WILD | {"guard.action": "warn"})
    with Run(config, model_path, sevens) as run:
        result = run.trainer().run()
    assert result["updates"] == 8
    assert "stopped_by_guard" not in result
    return [line["guard_kl"] for line in curves(config)]


@pytest.mark.parametrize("every_updates", [1, 2])
def test_stop_goes_back_to_the_last_good_checkpoint(tmp_path, model_path, kls, every_updates):
    # Crossed first at this update; its answers were sampled by the weights of the update before.
    at = next(number for number in range(4, 9) if kls[number - 1] > max(kls[: number - 1]))
    limit = (kls[at - 1] + max(kls[: at - 1])) / 2
    changed = WILD | {"guard.kl_stop_above": limit, "checkpoint.every_updates": every_updates}
    config = configured(tmp_path / "run", model_path, **changed)
    good = at - 2 if every_updates == 1 else (at - 2) // 2 * 2
    with Run(config, model_path, sevens) as run:
        with pytest.raises(
            StoppedByGuard, match=f"kl is .* at update {at}, above .*; the run went back to the checkpoint"
        ):
            run.trainer().run()
        result = json.loads(config.folder.result("ppo").read_text())
        assert result["updates"] == good
        (alert,) = [alert for alert in result["guards"] if alert["level"] == "stop"]
        assert alert == {
            "signal": "kl",
            "update": at,
            "value": pytest.approx(kls[at - 1]),
            "threshold": pytest.approx(limit),
            "level": "stop",
        }
        assert f"kl is {kls[at - 1]:.3g} at update {at}" in result["stopped_by_guard"]
        assert result["kl"] == pytest.approx(kls[good])
        assert result["tasks_trained"] == result["tasks_dispatched"] == 8 * good
        assert (result["tasks_lost"], result["tasks_duplicated"]) == (0, 0)
        assert [line["step"] for line in curves(config)] == list(range(1, at + 1))

        store = CheckpointStore(config.folder.checkpoints)
        kept = store.load_newest(read_lineage(config.folder.checkpoints))
        assert kept.version.update == good
        policy = load_file(config.folder.policy_model / "model.safetensors")
        assert all(torch.equal(tensor, kept.tensors["policy"][name]) for name, tensor in policy.items())
        assert run.world.store.latest().version.update == good
        assert "stopped by its guard: kl" in stopped_by_guard(config)
        assert not is_finished(config, "ppo")

        # With another action it continues from there.
        run.config = configured(tmp_path / "run", model_path, **changed | {"guard.action": "warn"})
        assert stopped_by_guard(run.config) == ""
        again = run.trainer().run()
    assert again["updates"] == 8
    assert (again["tasks_trained"], again["tasks_lost"], again["tasks_duplicated"]) == (64, 0, 0)
    assert "stopped_by_guard" not in again


def test_stop_before_the_first_checkpoint_goes_back_to_the_start(tmp_path, model_path):
    changed = {"guard.kl_stop_above": -100.0, "checkpoint.every_updates": 50}
    config = configured(tmp_path, model_path, **WILD | changed)
    with (
        Run(config, model_path, sevens) as run,
        pytest.raises(StoppedByGuard, match="back to the model that it began with"),
    ):
        run.trainer().run()
    result = json.loads(config.folder.result("ppo").read_text())
    assert (result["updates"], result["tasks_trained"], result["tasks_lost"]) == (0, 0, 0)
    policy = load_file(config.folder.policy_model / "model.safetensors")
    start = load_file(model_path / "model.safetensors")
    assert all(torch.equal(tensor, start[name]) for name, tensor in policy.items())


def test_samples_of_every_update_are_written_once(tmp_path, model_path):
    config = configured(tmp_path, model_path, **{"observe.rollout_samples": 3})
    with Run(config, model_path, sevens) as run:
        run.killed_after(5)
        with config.folder.rollout_samples.open("a") as file:
            file.write('{"update": 6, "torn')
        run.trainer().run()
    seven = load_tokenizer(str(model_path)).decode([7]).strip()
    rows = [json.loads(line) for line in config.folder.rollout_samples.read_text().splitlines()]
    assert [row["update"] for row in rows] == [number for number in range(1, 7) for _ in range(3)]
    assert [row["task"] for row in rows] == [
        8 * (row["update"] - 1) + place for row, place in zip(rows, [0, 1, 2] * 6, strict=True)
    ]
    for row in rows:
        assert row["score"] == row["text"].split().count(seven)
        assert row["prompt"].split()[0].startswith("w")


def test_killed_run_keeps_its_alerts(tmp_path, model_path):
    config = configured(tmp_path, model_path, **{"guard.kl_warn_above": -1.0})
    with Run(config, model_path, sevens) as run:
        run.killed_after(5)
        result = run.trainer().run()
    fired = [alert for alert in result["guards"] if alert["signal"] == "kl"]
    assert [(alert["update"], alert["level"]) for alert in fired] == [(1, "warn")]
