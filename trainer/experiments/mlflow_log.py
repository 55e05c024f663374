"""MLflow: a run for each stage in the experiment named `observe.tracker_project`. Needs the extra `mlflow`.

Server and credentials are those of its own environment: MLFLOW_TRACKING_URI, MLFLOW_TRACKING_TOKEN. Without a
server it writes files into the run's folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from trainer.experiments.base import Experiment
from trainer.experiments.ids import TrackedId

_T = TypeVar("_T")

_PARAMS = 100
"""Parameters of one call, MLflow's limit."""
_PARAM_CHARACTERS = 500
_METRICS = 1_000
"""Metrics of one call, MLflow's limit."""


class MlflowLog:
    """A stage as a run of MLflow."""

    def __init__(self, experiment: Experiment, *, first_step: int) -> None:
        """Open the run, or continue the one of an interrupted stage.

        Raises:
            MlflowException: if the server does not answer or refuses.
        """
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # MLflow asks before it writes plain files, because its own pages want a database.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (experiment.folder.absolute() / "mlruns").as_uri()
        self._stage = experiment.stage
        self._client = MlflowClient(tracking_uri=uri)
        self._tracked = TrackedId(experiment.folder, "mlflow", experiment.stage, first_step=first_step)
        self._id = self._continued() or self._created(experiment)
        self._tracked.note(self._id, finished=False)

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """Write a step. One that is repeated after a restart has two values; MLflow shows the later one."""
        now = round(time.time() * 1000)
        values = [Metric(f"{self._stage}/{name}", value, now, step) for name, value in figures.items()]
        for part in _parts(values, _METRICS):
            self._client.log_batch(self._id, metrics=part)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
        self._tracked.note(self._id, finished=not failed)

    def _continued(self) -> str | None:
        number = self._tracked.last()
        if number is None:
            return None
        try:
            self._client.update_run(number, status="RUNNING")
        except MlflowException:
            return None  # deleted, or of another server
        return number

    def _created(self, experiment: Experiment) -> str:
        found = self._client.get_experiment_by_name(experiment.project)
        number = self._client.create_experiment(experiment.project) if found is None else found.experiment_id
        run = self._client.create_run(
            number,
            run_name=f"{experiment.run}-{experiment.stage}",
            tags={"fairlead.run": experiment.run, "fairlead.stage": experiment.stage},
        )
        params = [Param(key, str(value)[:_PARAM_CHARACTERS]) for key, value in flat(experiment.settings)]
        for part in _parts(params, _PARAMS):
            self._client.log_batch(run.info.run_id, params=part, tags=list[RunTag]())
        return str(run.info.run_id)


def flat(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield each setting by its dotted key."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parts(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
