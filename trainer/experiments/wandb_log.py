"""Weights & Biases: a run for each stage, grouped by the name of the run. Needs the extra `wandb`.

Key, mode and server are those of its own environment: WANDB_API_KEY, WANDB_MODE=offline, WANDB_BASE_URL.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import wandb

from trainer.experiments.base import Experiment
from trainer.experiments.ids import TrackedId

_STEP = "step"


class WandbLog:
    """A stage as a run of W&B."""

    def __init__(self, experiment: Experiment, *, first_step: int) -> None:
        """Open the run, or continue the one of an interrupted stage.

        Raises:
            wandb.Error: if there is no key, or the server refuses it.
        """
        self._stage = experiment.stage
        self._tracked = TrackedId(experiment.folder, "wandb", experiment.stage, first_step=first_step)
        self._id = self._tracked.last() or secrets.token_hex(8)
        self._run = wandb.init(
            project=experiment.project,
            id=self._id,
            name=f"{experiment.run}-{experiment.stage}",
            group=experiment.run,
            job_type=experiment.stage,
            config=dict(experiment.settings),
            dir=str(experiment.folder),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        # Its own step only grows, while a stage that continues repeats the steps after its checkpoint.
        self._run.define_metric(_STEP, hidden=True)
        self._run.define_metric("*", step_metric=_STEP)
        self._tracked.note(self._id, finished=False)

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """Write a step."""
        self._run.log({f"{self._stage}/{name}": value for name, value in figures.items()} | {_STEP: step})

    def close(self, *, failed: bool) -> None:
        """End the run, and upload what is left."""
        self._run.finish(exit_code=1 if failed else 0)
        self._tracked.note(self._id, finished=not failed)
