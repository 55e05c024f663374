"""Settings that a process would refuse are refused before the start, by the same names."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead import config
from fairlead.config import ignored
from fairlead.errors import ConfigError, ModelLoadError
from fairlead.planning.plan import plan_run
from fairlead.planning.refusals import check_earlier_models, check_stage

SERVICES = ("policy", "reward", "reference")


def loaded(tmp_path: Path, **settings: object) -> config.RunConfig:
    keys = {name.replace("__", "."): value for name, value in settings.items()}
    return config.load(overrides={"runs": str(tmp_path), **keys})


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        ("ppo", {"reward__tensor_parallel": 3}, "^reward.tensor_parallel: got 3, .* the 4 attention heads"),
        ("ppo", {"reference__tensor_parallel": 8}, "^reference.tensor_parallel: got 8"),
        ("sft", {"ranks__tensor_parallel": 3, "ranks__per_node": 3}, "^ranks.tensor_parallel: got 3"),
        ("preference", {"ranks__tensor_parallel": 3, "ranks__per_node": 3}, "^ranks.tensor_parallel: got 3"),
        (
            "reward_model",
            {"ranks__tensor_parallel": 8, "ranks__per_node": 8},
            "^ranks.tensor_parallel: got 8",
        ),
        ("ppo", {"policy__engine": "vllm"}, "^policy.engine: got 'vllm, which is not installed"),
        ("ppo", {"reward__engine": "vllm"}, "^reward.engine: .* allowed: local, or an environment with vLLM"),
    ],
)
def test_setting_that_a_process_would_refuse(tmp_path: Path, stage: str, settings: dict, message: str):
    check_stage(loaded(tmp_path), stage, services=SERVICES)
    with pytest.raises(ConfigError, match=message):
        check_stage(loaded(tmp_path, **settings), stage, services=SERVICES)
    if stage == "ppo":  # the services run elsewhere
        check_stage(loaded(tmp_path, **settings), stage, services=())


@pytest.mark.parametrize(
    ("stage", "made", "message"),
    [
        ("sft", (), ""),
        ("reward_model", (), r"reward_model\.path: got 'no path', .* no .*/sft; `fairlead sft` makes it"),
        ("preference", (), r"preference\.path: got 'no path'"),
        ("ppo", (), r"policy\.path: got 'no path', .* `fairlead sft` makes it"),
        ("ppo", ("sft",), r"reward\.path: got 'no path', .*/reward_model; `fairlead reward-model` makes it"),
        ("ppo", ("sft", "reward_model"), ""),
    ],
)
def test_models_of_earlier_stages_are_needed(tmp_path: Path, stage: str, made: tuple[str, ...], message: str):
    given = loaded(tmp_path)
    for name in made:
        (given.folder.root / name).mkdir(parents=True)
    services = SERVICES if stage == "ppo" else ()
    if not message:
        check_earlier_models(given, stage, services=services)
        return
    with pytest.raises(ConfigError, match=message):
        check_earlier_models(given, stage, services=services)
    paths = {f"{name}__path": "some/model" for name in ("policy", "reward", "reference")}
    others = {} if stage == "ppo" else {f"{stage}__path": "some/model"}
    check_earlier_models(loaded(tmp_path, **paths, **others), stage, services=services)


@pytest.mark.parametrize("key", ["model.path", "policy.path", "reward_model.path", "reward.path"])
def test_plan_names_the_key_of_a_missing_model(tmp_path: Path, key: str):
    with pytest.raises(ModelLoadError, match=rf"^{key}: no model folder '{tmp_path}/none'"):
        plan_run(config.load(overrides={"runs": str(tmp_path), key: str(tmp_path / "none")}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"reward__engine": "triton", "reward__tensor_parallel": 2},
            "reward.tensor_parallel: got 2, allowed: 1, because reward.engine is 'triton'",
        ),
        (
            {"reward__engine": "function", "reward__function": "a:b", "reward__watch": True},
            "reward.watch: got True, allowed: false, because reward.engine is 'function'",
        ),
    ],
)
def test_settings_that_an_engine_cannot_have(tmp_path: Path, settings: dict, message: str):
    given = loaded(tmp_path, **settings)
    with pytest.raises(ConfigError, match=message):
        check_stage(given, "ppo", services=SERVICES)


def test_settings_that_a_deterministic_run_cannot_have(tmp_path: Path):
    with pytest.raises(ConfigError, match="reward.engine: got 'triton', allowed: .*with deterministic"):
        loaded(tmp_path, reward__engine="triton", deterministic=True)


def test_settings_of_other_engines_and_of_several_ranks_are_named(tmp_path: Path):
    assert ignored.of_processes(loaded(tmp_path)) == ()
    watched = loaded(tmp_path, reward__engine="triton", reward__watch=True)
    assert "reward.watch has no effect with reward.engine = 'triton'" in ignored.of_processes(watched)
    given = loaded(
        tmp_path, reward__vllm={"enforce_eager": True}, reward__triton__model="x", reward__engine="vllm",
        policy__vllm={"seed_": 1}, reward__attention="padded", checkpoint__asynchronous=True,
        weights__direct=False,
    )  # fmt: skip
    assert ignored.of_processes(given) == (
        "policy.vllm has no effect with policy.engine = 'transformers'",
        "reward.triton has no effect with reward.engine = 'vllm'",
        "reward.attention has no effect with reward.engine = 'vllm'",
        "weights.direct has no effect with weights.transport = 'filesystem'",
        "checkpoint.asynchronous has no effect with ranks.per_node = 1",
    )
