"""TRL's RLOO and GRPO; see trl_job.py. Runs with TRL 1.16.0."""

from __future__ import annotations

from typing import Any

import torch
import trl_job
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer


class Lines(TrainerCallback):
    """Prints a line after every update, of which the trainer logs one."""

    def on_log(self, args, state, control, logs=None, **rest):  # noqa: ANN001, ANN003, ANN201
        """Print the trainer's metrics; it logs a KL per token."""
        if "reward" in logs:
            trl_job.print_line(logs["reward"], logs.get("kl", 0.0) * logs["completions/mean_length"])


class OwnIds:
    """A trainer whose prompts are ids as text, so that both sides read the same tokens."""

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [ids(prompt) for prompt in prompts], None, {}


class Rloo(OwnIds, RLOOTrainer):
    """RLOO."""


class Grpo(OwnIds, GRPOTrainer):
    """GRPO."""


TRAINERS = {"rloo": (RLOOConfig, Rloo), "grpo": (GRPOConfig, Grpo)}


class Reward:
    """The reward model as a function of ids, since text has no end of its own; the whole batch at a time."""

    __name__ = "reward"

    def __init__(self, job: dict[str, Any], eos: int) -> None:
        self.model, self.eos, self.penalty = trl_job.reward_model(job), eos, job["missing_eos_penalty"]

    @torch.inference_mode()
    def __call__(self, prompts: list[str], completion_ids: list[list[int]], **rest: object) -> list[float]:
        """Return a score per answer; one that was cut off is ended, as ours, and pays a penalty."""
        cut = [answer[-1] != self.eos for answer in completion_ids]
        rows = [
            torch.tensor(ids(prompt) + answer + [self.eos] * missing)
            for prompt, answer, missing in zip(prompts, completion_ids, cut, strict=True)
        ]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        body = self.model.base_model
        hidden = body(input_ids=tokens, attention_mask=mask.long(), use_cache=False)[0]
        scores = self.model.score(hidden[torch.arange(len(rows)), lengths - 1])[:, 0]
        return (scores - self.penalty * torch.tensor(cut)).tolist()


def ids(prompt: str) -> list[int]:
    """Return the ids that a prompt of the data set names."""
    return [int(token) for token in prompt.split()]


def main() -> None:
    """Train the policy."""
    job = trl_job.read()
    config, trainer_class = TRAINERS[job["method"]]
    tokenizer = AutoTokenizer.from_pretrained(job["sft"], padding_side="left")
    steps = job["trainer"]["steps_per_generation"]
    rows = [{"prompt": " ".join(map(str, prompt))} for prompt in job["prompts"]]
    trainer = trainer_class(
        model=job["sft"],
        reward_funcs=Reward(job, tokenizer.eos_token_id),
        args=config(**job["trainer"]),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Lines()],
        peft_config=LoraConfig(**job["lora"]) if job["lora"] else None,
    )
    learning = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    # The trainer makes the adapters, so an optimizer cannot be passed in.
    trainer.optimizer, trainer.lr_scheduler = trl_job.optimizers(
        [(learning, job["learning_rate"])], job, calls=steps
    )
    trainer.add_callback(trl_job.Saving(trainer.model, job, steps=steps))
    trainer.train()


if __name__ == "__main__":
    main()
