"""The methods: how each makes a policy from the same SFT policy, reward model, prompts and rankings."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks import quickstart
from benchmarks.parcel_task.task import Task
from examples.parcel_help import methods as quickstart_methods

_TITLES = {
    "ppo": "PPO",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "dr-grpo": "Dr. GRPO",
    "gspo": "GSPO",
    "cispo": "CISPO",
    "reinforce++": "REINFORCE++",
    "reinforce++-baseline": "REINFORCE++ baseline",
    "online-dpo": "online DPO",
    "online-dpo-soft": "online DPO, soft labels",
}
_TRAINER = "trainer.ppo"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What all methods start from."""

    task: Task
    """Models, prompts and settings of the run."""
    rankings: Path
    """The rankings that the reward model was trained on, without those of held-out prompts."""


@dataclass(frozen=True, slots=True)
class Made:
    """A trained policy and what it cost."""

    policy: Path
    """Its folder."""
    episodes: int
    """Answers that were generated for it."""
    whole_cpu_seconds: float
    """CPU time of all processes of all commands, start-up included."""
    training_cpu_seconds: float
    """CPU time of the process that computes gradients, without start-up."""
    seconds: float
    """Wall-clock time of all commands."""


class Recipe(Protocol):
    """A method."""

    @property
    def name(self) -> str:
        """In the names of results and files."""
        ...

    @property
    def title(self) -> str:
        """For people."""
        ...

    def settings(self, inputs: Inputs, seed: int) -> Mapping[str, object]:
        """Return all settings that the outcome depends on."""
        ...

    def make(self, inputs: Inputs, seed: int, folder: Path, *, deadline: float) -> Made:
        """Run it in a folder.

        Raises:
            OutOfTime: if it has not ended at the deadline.
            ProcessFailed: if a command fails.
        """
        ...


@dataclass(frozen=True, slots=True)
class Online:
    """A method of the quickstart: the policy learns from scores of its own answers."""

    name: str
    """See `Recipe`."""
    title: str
    """See `Recipe`."""
    changed: Mapping[str, object] = field(hash=False)
    """Overrides of configs/quickstart.toml."""

    def settings(self, inputs: Inputs, seed: int) -> Mapping[str, object]:
        """See `Recipe`."""
        names = {"seed", "ppo", "sampling", "policy", "reward", "reference", "rollout_worker"}
        return quickstart.config(self._overrides(inputs, seed, Path("runs"))).model_dump(
            mode="json", include=names
        )

    def make(self, inputs: Inputs, seed: int, folder: Path, *, deadline: float) -> Made:
        """See `Recipe`."""
        overrides = self._overrides(inputs, seed, folder)
        config = quickstart.config(overrides)
        spent = quickstart.ppo(overrides, deadline=deadline)
        return Made(
            policy=config.folder.policy_model,
            episodes=config.ppo.updates * config.ppo.batch_size,
            whole_cpu_seconds=spent.whole_cpu_seconds,
            # Measured from the first update's end.
            training_cpu_seconds=spent.by_command[_TRAINER] * config.ppo.updates,
            seconds=spent.whole_seconds,
        )

    def _overrides(self, inputs: Inputs, seed: int, folder: Path) -> dict[str, str]:
        return inputs.task.overrides(self.changed, seed, folder)


@dataclass(frozen=True, slots=True)
class Offline:
    """A loss of `fairlead dpo` on the rankings; neither samples nor uses the reward model."""

    name: str
    """See `Recipe`."""
    title: str
    """See `Recipe`."""
    changed: Mapping[str, object] = field(hash=False)
    """Settings of `[preference]`."""

    def settings(self, inputs: Inputs, seed: int) -> Mapping[str, object]:
        """See `Recipe`."""
        config = quickstart.config(self._overrides(inputs, seed, Path("runs")))
        return {
            **config.model_dump(mode="json", include={"seed", "preference"}),
            "rankings": _text(inputs.rankings),
        }

    def make(self, inputs: Inputs, seed: int, folder: Path, *, deadline: float) -> Made:
        """See `Recipe`."""
        overrides = self._overrides(inputs, seed, folder)
        spent = _stage("dpo", "preference", overrides, deadline=deadline)
        policy = quickstart.config(overrides).folder.preference_model
        return Made(policy, 0, spent.whole_cpu_seconds, spent.training_cpu_seconds, spent.seconds)

    def _overrides(self, inputs: Inputs, seed: int, folder: Path) -> dict[str, str]:
        changed: dict[str, object] = {
            "preference.path": inputs.task.policy,
            "data.preferences": inputs.rankings,
            "preference.threads": 1,
            **{f"preference.{key}": value for key, value in self.changed.items()},
        }
        return inputs.task.overrides(changed, seed, folder)


@dataclass(frozen=True, slots=True)
class BestOfN:
    """The best of n answers to each prompt by the reward model, as demonstrations of more fine-tuning."""

    name: str
    """See `Recipe`."""
    title: str
    """See `Recipe`."""
    n: int
    """Answers of which one becomes a demonstration."""
    turns: int
    """Times that each prompt is answered n times."""
    changed: Mapping[str, object] = field(hash=False)
    """Settings of `[sft]`."""

    def settings(self, inputs: Inputs, seed: int) -> Mapping[str, object]:
        """See `Recipe`."""
        config = quickstart.config(self._overrides(inputs, seed, Path("runs")))
        own = {"n": self.n, "turns": self.turns}
        return config.model_dump(mode="json", include={"seed", "sft", "sampling"}) | own

    def make(self, inputs: Inputs, seed: int, folder: Path, *, deadline: float) -> Made:
        """See `Recipe`."""
        overrides = self._overrides(inputs, seed, folder)
        config = quickstart.config(overrides)
        prompts = folder / "repeated.jsonl"
        prompts.write_text(inputs.task.prompts.read_text() * self.turns)
        flags = {
            "--policy": inputs.task.policy,
            "--reward": inputs.task.reward_model,
            "--n": self.n,
            "--max-new-tokens": config.sampling.max_new_tokens,
            # The verb adds the number of the prompt.
            "--seed": seed << 20,
            "--out": folder / "best",
        }
        given = [text for name, value in flags.items() for text in (name, str(value))]
        begun = time.time()
        usage = quickstart.verb(["best-of-n", str(prompts), *given], deadline=deadline)
        sampled = time.time() - begun
        spent = _stage("sft", "sft", overrides, deadline=deadline)
        return Made(
            policy=config.folder.sft_model,
            episodes=self.n * len(prompts.read_text().splitlines()),
            whole_cpu_seconds=usage.total + spent.whole_cpu_seconds,
            training_cpu_seconds=spent.training_cpu_seconds,
            seconds=sampled + spent.seconds,
        )

    def _overrides(self, inputs: Inputs, seed: int, folder: Path) -> dict[str, str]:
        changed: dict[str, object] = {
            "model.path": inputs.task.policy,
            "data.demonstrations": folder / "best" / "demonstrations.jsonl",
            **{f"sft.{key}": value for key, value in self.changed.items()},
        }
        return inputs.task.overrides(changed, seed, folder)


def recipes() -> list[Recipe]:
    """Return all methods: those of the quickstart, those on the rankings, and best of n."""
    return [
        *(
            Online(name, _TITLES.get(name, name), {f"ppo.{key}": value for key, value in changed.items()})
            for name, changed in quickstart_methods.METHODS.items()
        ),
        # Chosen among five to ten settings by gold on the prompts of training, with another seed.
        Offline("dpo", "DPO", {"loss": "sigmoid", "beta": 0.5, "learning_rate": 1e-3, "epochs": 4}),
        Offline("kto", "KTO", {"loss": "kto", "beta": 0.3, "learning_rate": 1e-3, "epochs": 4}),
        # As many answers as the methods that sample during training.
        BestOfN("best-of-16", "best of 16, then SFT", 16, 3, {"epochs": 4, "learning_rate": 3e-3}),
    ]


@dataclass(frozen=True, slots=True)
class _Spent:
    whole_cpu_seconds: float
    training_cpu_seconds: float
    seconds: float


def _stage(verb: str, stage: str, overrides: Mapping[str, str], *, deadline: float) -> _Spent:
    """Run a stage of a single process."""
    begun = time.time()
    usage = quickstart.verb([verb, str(quickstart.CONFIG), *quickstart.flags(overrides)], deadline=deadline)
    lines = quickstart.config(overrides).folder.metrics(stage).read_text().splitlines()
    times = [json.loads(line)["time"] for line in lines]
    # As if the first step took as long as the others; measured from its end.
    steps = len(times) / max(1, len(times) - 1)
    training = sum(usage.between(times[0], times[-1]).values()) * steps
    return _Spent(usage.total, training, usage.times[-1] - begun)


def _text(file: Path) -> str:
    return file.read_text()
