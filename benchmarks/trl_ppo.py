"""TRL's PPO on the quickstart's task; run by an interpreter with TRL 1.12.0 and without this project.

`python -P trl_ppo.py JOB.json`: the job names models, tokenized prompts and settings under TRL's names. The
trained policy is saved in a folder; every update prints a JSON line with time, CPU seconds and score.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Lines(TrainerCallback):
    """Prints a line after every update."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    def on_log(self, args, state, control, logs=None, **rest):  # noqa: ANN001, ANN003, ANN201
        """Keep the trainer's metrics of this update."""
        self.figures = {"reward": logs["objective/scores"], "kl": logs["objective/kl"]}

    def on_step_end(self, args, state, control, **rest):  # noqa: ANN001, ANN003, ANN201
        """Print them with the times."""
        line = {"time": time.time(), "cpu_seconds": time.process_time(), **self.figures}
        print(json.dumps(line), flush=True)


def reward_model(path: str, bias: float) -> torch.nn.Module:
    """Return the reward model with its bias in the layer `score`, which TRL calls on hidden states."""
    model = AutoModelForSequenceClassification.from_pretrained(path)
    layer = torch.nn.Linear(model.score.in_features, 1)
    with torch.no_grad():
        layer.weight.copy_(model.score.weight)
        layer.bias.fill_(bias)
    model.score = layer
    return model.eval()


def value_model(path: str) -> torch.nn.Module:
    """Return the policy's body with a zero head, as our critic starts."""
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    torch.nn.init.zeros_(model.score.weight)
    return model


def optimizers(policy: torch.nn.Module, value: torch.nn.Module, job: dict) -> tuple:
    """Return an AdamW with a learning rate per model, both decaying to 0 with one schedule step per
    update.
    """
    optimizer = torch.optim.AdamW(
        [
            {"params": policy.parameters(), "lr": job["policy_learning_rate"]},
            {"params": value.parameters(), "lr": job["value_learning_rate"]},
        ],
        eps=job["adam_epsilon"],
        weight_decay=0.0,
        fused=True,
    )
    updates = job["updates"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: max(0.0, 1 - update / updates))
    return optimizer, schedule


def main() -> None:
    """Train and save the policy."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    set_seed(job["ppo"]["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["sft"], padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(job["sft"])
    value = value_model(job["sft"])
    trainer = PPOTrainer(
        args=PPOConfig(**job["ppo"]),
        processing_class=tokenizer,
        model=policy,
        ref_model=AutoModelForCausalLM.from_pretrained(job["sft"]),
        reward_model=reward_model(job["reward_model"], job["reward_bias"]),
        value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in job["prompts"]]),
        eval_dataset=Dataset.from_list([{"input_ids": ids} for ids in job["prompts"][:1]]),
        optimizers=optimizers(policy, value, job),
        callbacks=[Lines()],
    )
    trainer.train()
    policy.save_pretrained(job["output"])
    tokenizer.save_pretrained(job["output"])


if __name__ == "__main__":
    main()
