"""Run one side of a method with one seed: ours through its services, or TRL in its environment."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import quickstart
from benchmarks.against_trl import environments, jobs, outcome
from benchmarks.against_trl.evaluation import Evaluation
from benchmarks.against_trl.methods import Method
from benchmarks.against_trl.outcome import Outcome
from benchmarks.quickstart import Measured
from fairlead.config import RunConfig
from fairlead.data.records import load_prompts
from fairlead.errors import ProcessFailed

OURS, TRL = "ours", "TRL"
SIDES = (OURS, TRL)
_PEER = Path(__file__).parent / "peer"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_SECTIONS = {"seed", "ppo", "sampling", "policy", "reward", "reference", "rollout_worker"}
"""What the settings of a run consist of here; the others are places and names."""
_PLACES = ("output", "output_dir", "sft", "reward_model", "path", "addresses", "bind")


@dataclass(frozen=True, slots=True)
class Task:
    """What all runs have in common."""

    policy: Path
    """The model that all start from, which is also the reference."""
    reward_model: Path
    """The reward model."""
    prompts: Path
    """File of the prompts to train on."""
    heldout: tuple[str, ...]
    """Prompts that nothing was trained on."""
    extra: Mapping[str, object]
    """Overrides of configs/quickstart.toml for every run."""
    samples: int
    """Answers per held-out prompt when a policy is evaluated; 0 evaluates none."""
    points: int = 4
    """Policies evaluated in a run, besides the first."""

    def overrides(self, method: Method, seed: int, folder: Path) -> dict[str, str]:
        """Return the overrides of our run of a method with a seed, in a folder."""
        settings: dict[str, object] = {
            "name": "run",
            "runs": folder.absolute(),
            "policy.path": self.policy,
            "reference.path": self.policy,
            "reward.path": self.reward_model,
            "data.prompts": self.prompts,
            # All of them are for training: those held out are not in the file.
            "data.heldout_fraction": 1e-9,
            "seed": seed,
            **method.settings,
            **self.extra,
        }
        found = {name: str(value) for name, value in settings.items()}
        updates = quickstart.config(found).ppo.updates
        # Every version is kept, for the evaluations along the way.
        return found | {"weights.keep": str(updates + 1)}


def task_of(source: Path, folder: Path, *, extra: Mapping[str, object], samples: int) -> Task:
    """Return the task of a quickstart; the prompts that it trains on are written to a folder."""
    seed = tomllib.loads((source / "config.toml").read_text())["seed"]
    overrides = {"data.prompts": str(source / "data" / "prompts.jsonl"), "seed": str(seed)}
    split = load_prompts(quickstart.config(overrides))
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in split.train))
    heldout = tuple(str(prompt) for prompt in split.heldout)
    return Task(source / "sft", source / "reward_model", file, heldout, extra, samples)


class Run:
    """One side of a method with one seed."""

    def __init__(self, task: Task, method: Method, side: str, seed: int) -> None:
        self.method, self.side, self.seed = method, side, seed
        self._task = task

    def __str__(self) -> str:
        return f"{self.method.title}, {self.side}, seed {self.seed}"

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.method.name}-{self.side.lower()}-seed{self.seed}"

    def key(self) -> str:
        """Return the digest of all settings that its figures depend on, but not of our code."""
        config = quickstart.config(self._task.overrides(self.method, self.seed, Path("runs")))
        settings: dict[str, Any] = {
            "run": config.model_dump(mode="json", include=_SECTIONS),
            "models": [_digest(folder) for folder in (self._task.policy, self._task.reward_model)],
            "prompts": hashlib.sha256(self._task.prompts.read_bytes()).hexdigest(),
            "evaluation": [self._task.heldout, self._task.samples, self._task.points],
        }
        if self.side == TRL:
            job = jobs.job(self.method, config, Path(), save_after=self._evaluated(config))
            settings |= {
                "job": job,
                "packages": environments.packages(self.method.release),
                "programs": [file.read_text() for file in sorted(_PEER.glob("*.py"))],
            }
        return outcome.key(_without_places(settings))

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
            overrides = self._task.overrides(self.method, self.seed, folder)
            config = quickstart.config(overrides)
            if self.side == OURS:
                spent = quickstart.ppo(overrides, deadline=deadline)
            else:
                spent = self._trl(config, folder, deadline=deadline)
            batch = config.ppo.batch_size
            points = []
            if evaluation is not None:
                points = [evaluation.point(None, 0)]
                for update in self._evaluated(config):
                    points.append(evaluation.point(self._policy(config, folder, update), update * batch))
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


def _environment() -> dict[str, str]:
    """Return this process's variables without the path of its packages, which are not TRL's."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _digest(folder: Path) -> str:
    """Return the digest of a model's weights and settings."""
    files = itertools.chain(folder.glob("*.safetensors"), folder.glob("config.json"))
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _without_places(settings: Any) -> Any:  # noqa: ANN401 - any JSON
    """Leave out paths and addresses: the same models elsewhere are the same."""
    if isinstance(settings, dict):
        return {name: _without_places(value) for name, value in settings.items() if name not in _PLACES}
    if isinstance(settings, list | tuple):
        return [_without_places(value) for value in settings]
    return settings
