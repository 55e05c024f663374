"""Losses, gradients and weights that are not finite end every stage, and nothing of that kind is written."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fairlead.errors import FairleadError, ModelLoadError, NotFinite, NothingToTrain, exit_code
from fairlead.nn.loading import load_causal_lm
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.test_train import Run, configured
from tests.unit.trainer.stage_world import reward_model_run, sft_run
from trainer import finite, optim
from trainer.ppo import evaluate
from trainer.reward_model import train as reward_model
from trainer.sft import train as sft


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return tiny_causal_lm(tmp_path_factory.mktemp("model"))


def test_skipped_steps_in_a_row_end_a_stage():
    steps = finite.FiniteSteps("ppo", rate="ppo.learning_rate")
    for _ in range(4):  # a finite step in between starts the count again
        assert not steps.check({"the loss": math.inf}, where="update 1")
        assert not steps.check({"the loss": 1.0, "the gradient": math.nan}, where="update 1")
        assert steps.check({"the loss": 1.0, "the gradient": 2.0}, where="update 1")
    steps.check_ended()
    assert not steps.check({"the loss": -math.inf, "the gradient": math.nan}, where="update 2")
    with pytest.raises(
        NotFinite, match="the loss is -inf at update 2, and that step was skipped: lower ppo.l"
    ):
        steps.check_ended()
    steps.check({"the loss": math.nan}, where="update 3")
    with pytest.raises(NotFinite, match="the loss is nan at update 4, and the last 3 optimizer steps were"):
        steps.check({"the loss": math.nan}, where="update 4")
    assert exit_code(NotFinite("")) == exit_code(NothingToTrain("")) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(value: float, dtype: torch.dtype):
    tensors = {
        "a": torch.ones(3, 4, dtype=dtype),
        "empty": torch.zeros(0, dtype=dtype),
        "ids": torch.arange(3),
        "b": torch.full((), 3e38, dtype=dtype),
    }
    finite.check_weights(tensors, what="the policy", rate="ppo.learning_rate")
    tensors["a"][1, 2] = value
    with pytest.raises(NotFinite, match=r"the policy has weights that are not finite \(a\), .* lower ppo"):
        finite.check_weights(tensors, what="the policy", rate="ppo.learning_rate")


@pytest.mark.parametrize(
    ("broken", "part", "cause"),
    [
        ("gradient", "critic", "the gradient of the critic is nan at update 4, and the last 3 .*: lower ppo"),
        ("gradient", "policy", "the gradient of the policy is nan at update 4"),
        ("weights", "critic", "the loss of the critic is nan at update 4"),
        ("weights", "policy", "the loss of the policy is nan at update 4"),
    ],
)
def test_ppo_stops_when_a_model_is_not_finite(tmp_path, model_path, broken, part, cause):
    with Run(configured(tmp_path, model_path, **{"guard.action": "stop"}), model_path) as run:

        def corrupt(done: int) -> None:
            if done == 3:
                parameter = next(iter(optim.learning(getattr(run.models, part))))
                if broken == "gradient":
                    parameter.register_hook(lambda gradient: gradient * math.nan)
                else:
                    parameter.data.fill_(math.nan)

        with pytest.raises(NotFinite, match=cause):
            run.trainer().run(on_update=corrupt)
        files = [*run.config.weights_path.rglob("*.safetensors")]
        files += run.config.folder.checkpoints.rglob("*.safetensors")
        assert len({file.parent for file in files}) > 2
        assert all(tensor.isfinite().all() for file in files for tensor in load_file(file).values())
        rows = run.config.folder.metrics("ppo").read_text().splitlines()
        assert [json.loads(row)["skipped_steps"] for row in rows] == [0, 0, 0]
        assert not run.config.folder.result("ppo").exists()
        # The same command continues from the last checkpoint.
        assert run.trainer().run()["updates"] == 6


def test_ppo_stops_when_a_step_breaks_the_weights(tmp_path, model_path):
    with Run(configured(tmp_path, model_path, **{"ppo.learning_rate": 1e38}), model_path) as run:
        with pytest.raises(NotFinite, match="the policy (has weights that are not finite|is nan)"):
            run.trainer().run()
        assert run.world.store.latest().version.update == 0


def test_ppo_stops_when_every_task_is_dead(tmp_path, model_path):
    config = configured(tmp_path, model_path)
    with Run(config, model_path, score=lambda answer: math.nan) as run:
        with pytest.raises(NothingToTrain, match=r"update 3 .*malformed_rollout 8 times\), .* score is nan"):
            run.trainer().run()
    assert not config.folder.result("ppo").exists()


def test_evaluation_with_a_score_that_is_not_finite_chooses_no_best():
    answers = [evaluate.EvaluatedAnswer(score, 0.0, 3, True) for score in (1.0, math.nan)]
    with pytest.raises(FairleadError, match="score nan"):
        evaluate.figures(answers)


@pytest.mark.parametrize("train", [sft.train, reward_model.train])
@pytest.mark.parametrize("learning_rate", [1e30, 3e38])
def test_stage_that_leaves_the_finite_numbers_writes_no_model(tmp_path, model_path, train, learning_rate):
    if train is sft.train:
        config = sft_run(tmp_path, learning_rate=learning_rate, epochs=2)
    else:
        config = reward_model_run(tmp_path, comparisons=60, learning_rate=learning_rate, path=str(model_path))
    with pytest.raises(NotFinite, match="lower (sft|reward_model).learning_rate"):
        train(config)
    assert not config.folder.sft_model.exists()
    assert not config.folder.reward_model.exists()
    steps = [json.loads(line) for line in next(config.folder.root.glob("metrics_*")).read_text().splitlines()]
    assert len(steps) <= 2 * finite.MAX_SKIPPED_STEPS


def test_initial_model_that_is_not_finite_is_not_published(tmp_path, model_path):
    config = configured(tmp_path, model_path)
    model = load_causal_lm(str(model_path), config.ppo)
    next(model.parameters()).data[7] = math.nan
    shutil.copytree(model_path, tmp_path / "broken")
    model.save_pretrained(tmp_path / "broken")
    with Run(configured(tmp_path, tmp_path / "broken"), model_path) as run:
        with pytest.raises(ModelLoadError, match="NaN or infinite, such as in model.embed_tokens.weight"):
            run.trainer().run()
        assert run.world.store.latest() is None
