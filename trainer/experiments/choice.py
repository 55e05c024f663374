"""Opens the experiment logs that a run asks for: `observe.tensorboard` and `observe.trackers`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial

from fairlead.config import RunConfig
from fairlead.config.saving import without_secrets
from fairlead.errors import ConfigError
from trainer.experiments.background import Background
from trainer.experiments.base import Experiment, ExperimentLog


def _wandb(experiment: Experiment, first_step: int) -> ExperimentLog:
    from trainer.experiments.wandb_log import WandbLog

    return WandbLog(experiment, first_step=first_step)


def _mlflow(experiment: Experiment, first_step: int) -> ExperimentLog:
    from trainer.experiments.mlflow_log import MlflowLog

    return MlflowLog(experiment, first_step=first_step)


TRACKERS: Mapping[str, Callable[[Experiment, int], ExperimentLog]] = {"wandb": _wandb, "mlflow": _mlflow}
"""What opens each tool, by its name in `observe.trackers`: that of its package and of the extra."""


def open_logs(stage: str, config: RunConfig, *, first_step: int) -> list[ExperimentLog]:
    """Open the logs of a stage.

    Args:
        stage: such as `ppo`.
        config: the run.
        first_step: where the stage continues; 0: from the start.

    Raises:
        ConfigError: if a tool is not installed.
    """
    for name in config.observe.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                "observe.trackers",
                got=f"{name}, which is not installed",
                allowed=f"what is installed: pip install 'fairlead-rlhf[{name}]'",
            )
    logs: list[ExperimentLog] = []
    if config.observe.tensorboard and importlib.util.find_spec("tensorboard") is not None:
        from trainer.experiments.tensorboard import TensorBoard

        logs.append(TensorBoard(config.folder.tensorboard, stage, first_step=first_step))
    if not config.observe.trackers:
        return logs
    experiment = Experiment(
        run=config.name,
        stage=stage,
        project=config.observe.tracker_project,
        folder=config.folder.root,
        settings=without_secrets(config).model_dump(mode="json"),
    )
    for name in config.observe.trackers:
        logs.append(Background(name, partial(TRACKERS[name], experiment, first_step)))
    return logs
