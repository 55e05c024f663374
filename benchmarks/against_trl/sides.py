"""Run one side of a method with one seed: ours through its services, or TRL in its environment."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import quickstart
from benchmarks.against_trl import environments, jobs, outcome
from benchmarks.against_trl.methods import Method
from benchmarks.against_trl.outcome import Outcome, Point
from benchmarks.parcel_task import store
from benchmarks.parcel_task.evaluation import Evaluation
from benchmarks.parcel_task.task import Task, model_digest, without_places
from benchmarks.quickstart import Measured
from fairlead.config import RunConfig
from fairlead.errors import ProcessFailed

OURS, TRL = "ours", "TRL"
SIDES = (OURS, TRL)
_PEER = Path(__file__).parent / "peer"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_SECTIONS = {"seed", "ppo", "sampling", "policy", "reward", "reference", "rollout_worker"}
"""What the settings of a run consist of here; the others are places and names."""


class Run:
    """One side of a method with one seed."""

    def __init__(self, task: Task, method: Method, side: str, seed: int) -> None:
        self.method, self.side, self.seed = method, side, seed
        self._task = task

    @property
    def kind(self) -> tuple[str, str]:
        """What fails for every seed if it fails for one."""
        return self.method.name, self.side

    def __str__(self) -> str:
        return f"{self.method.title}, {self.side}, seed {self.seed}"

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.method.name}-{self.side.lower()}-seed{self.seed}"

    def key(self) -> str:
        """Return the digest of all settings that its figures depend on, but not of our code."""
        config = quickstart.config(self._task.overrides(self.method.settings, self.seed, Path("runs")))
        settings: dict[str, Any] = {
            "run": config.model_dump(mode="json", include=_SECTIONS),
            "models": [model_digest(folder) for folder in (self._task.policy, self._task.reward_model)],
            "prompts": self._task.prompts_digest,
            "evaluation": [self._task.heldout, self._task.samples, self._task.points],
        }
        if self.side == TRL:
            job = jobs.job(self.method, config, Path(), save_after=self._evaluated(config))
            settings |= {
                "job": job,
                "packages": environments.packages(self.method.release),
                "programs": [file.read_text() for file in sorted(_PEER.glob("*.py"))],
            }
        return store.key(without_places(settings))

    def measure(self, evaluation: Evaluation | None, *, deadline: float = math.inf) -> Outcome:
        """Run it.

        Args:
            evaluation: evaluates its policies; None leaves that out.
            deadline: Unix time at which it is killed.

        Raises:
            OutOfTime: if it was.
            ProcessFailed: if it fails.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            overrides = self._task.overrides(self.method.settings, self.seed, folder)
            config = quickstart.config(overrides)
            if self.side == OURS:
                spent = quickstart.ppo(overrides, deadline=deadline)
            else:
                spent = self._trl(config, folder, deadline=deadline)
            batch = config.ppo.batch_size
            points = []
            if evaluation is not None:
                points = [_point(evaluation, None, 0)]
                for update in self._evaluated(config):
                    points.append(_point(evaluation, self._policy(config, folder, update), update * batch))
        return Outcome(
            cpu_seconds=spent.cpu_seconds / batch,
            seconds=spent.seconds / batch,
            whole_cpu_seconds=spent.whole_cpu_seconds,
            last_score=spent.last_reward,
            points=tuple(points),
        )

    def _evaluated(self, config: RunConfig) -> Sequence[int]:
        if not self._task.samples:
            return ()
        return outcome.evaluated(config.ppo.updates, points=self._task.points)

    def _policy(self, config: RunConfig, folder: Path, update: int) -> Path:
        """Return the folder with the weights after an update."""
        if self.side == TRL:
            return folder / "policies" / str(update)
        return config.folder.weights / f"1-{update}"

    def _trl(self, config: RunConfig, folder: Path, *, deadline: float) -> Measured:
        python = environments.interpreter(self.method.release)
        file = folder / "job.json"
        file.write_text(json.dumps(jobs.job(self.method, config, folder, save_after=self._evaluated(config))))
        program = _PEER / ("trl_ppo.py" if self.method.name == "ppo" else "trl_groups.py")
        begun = time.time()
        usage, said, code = quickstart.watched(
            [str(python), str(program), str(file)], {**_environment(), **_ONE_THREAD}, deadline=deadline
        )
        if code:
            raise ProcessFailed(f"TRL {self.method.release} ended with exit code {code}: {said[-2000:]}")
        return quickstart.measured(said.splitlines(), usage, begun=begun)


def _point(evaluation: Evaluation, policy: Path | None, episodes: int) -> Point:
    found = evaluation.evaluated(policy)
    return Point(episodes, found.gold, found.kl)


def _environment() -> dict[str, str]:
    """Return this process's variables without the path of its packages, which are not TRL's."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
