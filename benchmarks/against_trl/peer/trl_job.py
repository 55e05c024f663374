"""What the programs of this folder share: the job, the reward model, the optimizer and the lines they print.

They run by an interpreter with TRL and without this project: `python trl_ppo.py JOB.json`. The job names
models, tokenized prompts and settings under TRL's names. Every update prints a JSON line with time, CPU
seconds, score and KL; after some of them the policy is saved.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, TrainerCallback, set_seed


def read() -> dict[str, Any]:
    """Return the job, after what both programs do first."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    set_seed(job["trainer"]["seed"])
    return job


def print_line(reward: float, kl: float) -> None:
    """Print what an update was like."""
    line = {"time": time.time(), "cpu_seconds": time.process_time(), "reward": reward, "kl": kl}
    print(json.dumps(line), flush=True)


def reward_model(job: dict[str, Any]) -> torch.nn.Module:
    """Return the reward model with its bias in the layer `score`, which reads hidden states."""
    model = AutoModelForSequenceClassification.from_pretrained(job["reward_model"], dtype=torch.float32)
    layer = torch.nn.Linear(model.score.in_features, 1)
    with torch.no_grad():
        layer.weight.copy_(model.score.weight)
        layer.bias.fill_(job["reward_bias"])
    model.score = layer
    return model.eval()


def optimizers(
    groups: Iterable[tuple[Iterable[torch.nn.Parameter], float]], job: dict[str, Any], *, calls: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return our AdamW and our schedule.

    Args:
        groups: parameters and their learning rate.
        job: the job.
        calls: how often the trainer steps the schedule in an update.
    """
    optimizer = torch.optim.AdamW(
        [{"params": list(parameters), "lr": rate} for parameters, rate in groups],
        eps=job["adam_epsilon"],
        weight_decay=0.0,
        fused=True,
    )
    factors = [*job["learning_rate_factors"], 0.0]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: factors[min(step // calls, len(factors) - 1)]
    )
    return optimizer, schedule


class Saving(TrainerCallback):
    """Saves the policy after some of the updates."""

    def __init__(self, policy: torch.nn.Module, job: dict[str, Any], *, steps: int) -> None:
        """
        Args:
            policy: the model to save.
            job: the job.
            steps: the trainer's global steps in an update.
        """
        self.policy, self.folder, self.steps = policy, Path(job["output"]), steps
        self.after = set(job["save_after"])

    def on_step_end(self, args, state, control, **rest):  # noqa: ANN001, ANN003, ANN201
        """Save it in a folder with the number of the update as its name."""
        update, left = divmod(state.global_step, self.steps)
        if not left and update in self.after:
            self.policy.save_pretrained(self.folder / str(update))
