"""The process of a stage: exit codes and messages, and that a finished stage is not repeated."""

from __future__ import annotations

import json
import logging
import signal

import pytest
from prometheus_client import CollectorRegistry

from fairlead.config import load
from fairlead.errors import Fenced, ModelLoadError, Stalled, StoppedByGuard
from fairlead.metrics import TrainerMetrics
from trainer import stage
from trainer.results import config_hash


@pytest.fixture(autouse=True)
def _signals():
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def flags(tmp_path):
    (tmp_path / "run.toml").write_text('name = "t"\n[observe]\nmetrics_port = -1\n')
    return ["--config", str(tmp_path / "run.toml"), "--set", f"runs={tmp_path}"]


class Body:
    """Counts its runs and writes a result, or fails."""

    def __init__(self, error: BaseException | None = None):
        self.error, self.runs, self.forgotten = error, 0, 0

    def __call__(self, config, metrics, group):
        self.runs += 1
        if self.error is not None:
            raise self.error
        config.folder.root.mkdir(exist_ok=True)
        result = {"updates": config.ppo.updates, "config_hash": config_hash("ppo", config)}
        config.folder.result("ppo").write_text(json.dumps(result))

    def forget(self, config):
        self.forgotten += 1


@pytest.fixture
def run(flags):
    """Run the stage `ppo`; each run has its own registry of metrics, as each process does."""

    def found(body, *more):
        return stage.run(
            "ppo",
            body,
            [*flags, *more],
            new_metrics=TrainerMetrics,
            forget=body.forget,
            registry=CollectorRegistry(),
        )

    return found


@pytest.mark.parametrize(
    ("error", "code"), [(ModelLoadError("none"), 2), (Fenced("newer"), 3), (Stalled("task 5"), 4)]
)
def test_error_is_one_line_and_an_exit_code(run, capsys, error, code):
    assert run(Body(error)) == code
    assert capsys.readouterr().err.splitlines()[-1] == f"{type(error).__name__}: {error}"


def test_misspelt_setting_is_rejected_with_the_nearest_right_one(run, capsys):
    assert run(Body(), "--set", "ppo.update=3") == 2
    assert "did you mean `ppo.updates`?" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_ends_a_stage_with_its_exit_code(run, number, code):
    def body(config, metrics, group):
        signal.raise_signal(number)
        pytest.fail("the signal did not end the stage")

    body.forget = None
    with pytest.raises(SystemExit) as ended:
        run(body)
    assert ended.value.code == code


def test_finished_stage_is_not_repeated_unless_forced_or_extended(run, capsys):
    body = Body()
    assert run(body) == 0
    assert run(body) == 0
    assert body.runs == 1
    assert "ppo is already done" in capsys.readouterr().err
    assert run(body, "--set", "ppo.kl_coefficient=0.5") == 0
    assert "but with other inputs (ppo.kl_coefficient: 0.05 before, 0.5 now)" in capsys.readouterr().err
    assert (body.runs, body.forgotten) == (1, 0)
    capsys.readouterr()
    assert run(body, "--force") == 0
    assert "already done" not in capsys.readouterr().err
    assert (body.runs, body.forgotten) == (2, 1)
    assert run(body, "--set", "ppo.updates=200") == 0  # continues from its checkpoint
    assert (body.runs, body.forgotten) == (3, 1)


def test_forced_stage_that_failed_continues(run):
    body = Body()
    run(body)
    body.error = Stalled("no rollout arrived")
    assert run(body, "--force") == 4
    assert run(body, "--force") == 4
    assert body.forgotten == 1


def test_config_hash_depends_on_settings_that_determine_the_result():
    plain = config_hash("sft", load())
    assert plain == config_hash("sft", load(overrides={"observe.log_level": "DEBUG"}))
    assert plain != config_hash("sft", load(overrides={"sft.epochs": 9}))
    assert plain != config_hash("sft", load(overrides={"seed": 1}))


@pytest.mark.parametrize("error", [None, StoppedByGuard("kl is 11")])
def test_stage_that_has_ended_serves_its_metrics_until_a_signal(run, error):
    class Stop(logging.Handler):
        def emit(self, record):
            if "metrics are served" in record.getMessage():
                signal.raise_signal(signal.SIGTERM)

    handler = Stop()
    stage.logger.addHandler(handler)
    try:
        code = run(Body(error), "--set", "observe.linger_seconds=3600")
    finally:
        stage.logger.removeHandler(handler)
    assert code == (5 if error else 0)  # not that of the signal
