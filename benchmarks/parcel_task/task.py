"""The task that runs have in common: models, prompts and settings of a quickstart."""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import quickstart
from fairlead.data.records import load_prompts

PLACES = ("output", "output_dir", "sft", "reward_model", "path", "addresses", "bind")
"""Settings that name files and addresses."""


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

    @property
    def prompts_digest(self) -> str:
        """Digest of the prompts to train on."""
        return hashlib.sha256(self.prompts.read_bytes()).hexdigest()

    def overrides(self, settings: Mapping[str, object], seed: int, folder: Path) -> dict[str, str]:
        """Return the overrides of a run with these settings and a seed, in a folder."""
        changed: dict[str, object] = {
            "name": "run",
            "runs": folder.absolute(),
            "policy.path": self.policy,
            "reference.path": self.policy,
            "reward.path": self.reward_model,
            "data.prompts": self.prompts,
            # All of them are for training: those held out are not in the file.
            "data.heldout_fraction": 1e-9,
            "seed": seed,
            **settings,
            **self.extra,
        }
        found = {name: str(value) for name, value in changed.items()}
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


def model_digest(folder: Path) -> str:
    """Return the digest of a model's weights and settings."""
    files = itertools.chain(folder.glob("*.safetensors"), folder.glob("config.json"))
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def without_places(settings: Any) -> Any:  # noqa: ANN401 - any JSON
    """Leave out paths and addresses: the same models elsewhere are the same."""
    if isinstance(settings, dict):
        return {name: without_places(value) for name, value in settings.items() if name not in PLACES}
    if isinstance(settings, list | tuple):
        return [without_places(value) for value in settings]
    return settings
