"""Compare our PPO, through the services, with TRL 1.12.0 (its last release with PPO) on the quickstart's
task.

Both use the same SFT policy, reward model, prompts and number of episodes, and the same settings where they
exist (table in docs/benchmarks.md). TRL runs in a separate environment, which the first call creates. Gold is
the mean gold reward of 64 answers to each prompt that was held out from all training.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import quickstart
from benchmarks.quickstart import Measured
from benchmarks.result import OUT, Result, Settings
from fairlead.config import RunConfig
from fairlead.data.records import load_prompts
from fairlead.errors import ProcessFailed
from fairlead.nn.loading import load_tokenizer
from fairlead.nn.reward_model import REWARD_BIAS
from fairlead.types import WeightVersion
from trainer.optim import ADAM_EPSILON
from trainer.ppo.dispatch import PromptOrder

PACKAGES = ("trl==1.12.0", "torch==2.13.0", "transformers==5.23.0")
SEEDS = 3
SAMPLES = 64
_SCRIPT = Path(__file__).with_name("trl_ppo.py")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True)
class Side:
    """Cost and result of one trainer with one seed."""

    spent: Measured
    """Times."""
    gold: float
    """Mean gold reward on held-out prompts."""

    def __str__(self) -> str:
        reward, kl = self.spent.last_reward, self.spent.last_kl
        return f"gold {self.gold:.2f}, last batch: score {reward:.2f}, KL {kl:.2f}"


def run(settings: Settings) -> dict[str, Result]:
    """Measure CPU seconds per episode and gold of both, means over seeds that take turns."""
    source = quickstart.ensure(settings.source)
    python = environment()
    ours, theirs = list[Side](), list[Side]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        heldout, prompts = _split(source, folder)
        for seed in range(settings.rounds(SEEDS)):
            extra: dict[str, object] = {"seed": seed, "data.heldout_fraction": 1e-9}
            if settings.quick:
                extra |= {"ppo.updates": 2, "ppo.batch_size": 8, "ppo.mini_batch_size": 8}
            overrides = quickstart.settings(source, folder, f"seed-{seed}", extra)
            overrides["data.prompts"] = str(prompts)
            config = quickstart.config(overrides)
            spent = quickstart.ppo(overrides)
            ours.append(Side(spent, _gold(config, config.folder.policy_model, heldout)))
            spent = _trl(python, config, folder / f"trl-{seed}")
            theirs.append(Side(spent, _gold(config, folder / f"trl-{seed}" / "policy", heldout)))
            print(f"seed {seed}: ours {ours[-1]}; TRL {theirs[-1]}", file=sys.stderr)
        before = _gold(config, source / "sft", heldout)
    print(f"gold of the SFT policy that both start from: {before:.2f}", file=sys.stderr)
    return _results(ours, theirs, before=before, batch=config.ppo.batch_size)


def environment() -> Path:
    """Return the interpreter of TRL's environment, which is created if it does not exist.

    Raises:
        ProcessFailed: if its packages cannot be installed.
    """
    folder = OUT / "trl-environment"
    python, ready = (folder / "bin" / "python").absolute(), folder / "ready.txt"
    if not ready.exists() or ready.read_text() != " ".join(PACKAGES):
        print(f"installing {', '.join(PACKAGES)} into {folder}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
            raise ProcessFailed(f"pip could not install {', '.join(PACKAGES)}; its output is above")
        ready.write_text(" ".join(PACKAGES))
    return python


def job(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Return the job of `trl_ppo.py`: our settings under TRL's names, and our prompts in our order."""
    ppo, sampling = config.ppo, config.sampling
    tokenizer = load_tokenizer(config.policy.path)
    order = PromptOrder(load_prompts(config).train, tokenizer, sampling=sampling, seed=config.seed)
    episodes = ppo.updates * ppo.batch_size
    tasks = order.tasks(range(episodes), min_version=WeightVersion(0, 0))
    reward_config = json.loads((Path(config.reward.path) / "config.json").read_text())
    return {
        "sft": config.policy.path,
        "reward_model": config.reward.path,
        "reward_bias": float(reward_config.get(REWARD_BIAS, 0.0)),
        "output": str(folder / "policy"),
        "prompts": [task.prompt_token_ids for task in tasks],
        "updates": ppo.updates,
        "policy_learning_rate": ppo.learning_rate,
        "value_learning_rate": ppo.critic_learning_rate,
        "adam_epsilon": ADAM_EPSILON,
        "ppo": {
            "output_dir": str(folder / "trainer"),
            "seed": config.seed,
            "total_episodes": episodes,
            # The whole batch at a time; with accumulation 1, one optimizer step per mini-batch.
            "per_device_train_batch_size": ppo.batch_size,
            "gradient_accumulation_steps": 1,
            "num_mini_batches": ppo.batch_size // ppo.mini_batch_size,
            "local_rollout_forward_batch_size": ppo.batch_size,
            "num_ppo_epochs": ppo.epochs,
            "response_length": sampling.max_new_tokens,
            "stop_token": "eos",
            "temperature": sampling.temperature,
            "missing_eos_penalty": ppo.missing_eos_penalty,
            "kl_coef": ppo.kl_coefficient,
            "kl_estimator": ppo.kl_estimator,
            "cliprange": ppo.clip_range,
            "cliprange_value": ppo.value_clip_range,
            "vf_coef": 1.0,
            "gamma": ppo.gae_gamma,
            "lam": ppo.gae_lambda,
            "whiten_rewards": ppo.whiten_rewards,
            "bf16": False,
            "gradient_checkpointing": False,
            "use_cpu": True,
            "num_sample_generations": 0,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        },
    }


def _split(source: Path, folder: Path) -> tuple[list[str], Path]:
    """Return the prompts that the quickstart never trained on, and a file of the others."""
    seed = tomllib.loads((source / "config.toml").read_text())["seed"]
    overrides = {"data.prompts": str(source / "data" / "prompts.jsonl"), "seed": str(seed)}
    split = load_prompts(quickstart.config(overrides))
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in split.train))
    return [str(prompt) for prompt in split.heldout], file


def _trl(python: Path, config: RunConfig, folder: Path) -> Measured:
    folder.mkdir()
    file = folder / "job.json"
    file.write_text(json.dumps(job(config, folder)))
    begun = time.time()
    command = [str(python), "-P", str(_SCRIPT), str(file)]
    usage, said, code = quickstart.watched(command, {**os.environ, **_ONE_THREAD})
    if code:
        raise ProcessFailed(f"TRL ended with exit code {code}: {said[-2000:]}")
    return quickstart.measured(said.splitlines(), usage, begun=begun)


def _gold(config: RunConfig, policy: Path, prompts: Sequence[str]) -> float:
    return asyncio.run(quickstart.gold_of(config, policy, prompts, samples=SAMPLES))


def _results(ours: Sequence[Side], theirs: Sequence[Side], *, before: float, batch: int) -> dict[str, Result]:
    def means(field: str, per: int) -> tuple[float, float]:
        found = [statistics.fmean(getattr(s.spent, field) for s in side) / per for side in (ours, theirs)]
        return found[0], found[1]

    what = "TRL 1.12.0"
    results = {}
    for name, field, per, unit in (
        ("cpu", "cpu_seconds", batch, "CPU-s/episode"),
        ("cpu_whole_run", "whole_cpu_seconds", 1, "CPU-s"),
        ("wall", "seconds", batch, "s/episode"),
    ):
        value, baseline = means(field, per)
        results[f"trl_{name}"] = Result(value, unit, baseline, what)
    golds = [statistics.fmean(side.gold for side in sides) for sides in (ours, theirs)]
    results["trl_gold"] = Result(golds[0], "gold", golds[1], what)
    results["trl_gold_gain"] = Result(golds[0] - before, "gold", golds[1] - before, what)
    kls = [statistics.fmean(side.spent.last_kl for side in sides) for sides in (ours, theirs)]
    results["trl_kl"] = Result(kls[0], "nats/answer", kls[1], what)
    return results
