"""TRL's PPO; see trl_job.py. Runs with TRL 1.12.0, its last release with PPO."""

from __future__ import annotations

import trl_job
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Lines(TrainerCallback):
    """Prints a line after every update."""

    def __init__(self) -> None:
        self.figures: tuple[float, float] = (0.0, 0.0)

    def on_log(self, args, state, control, logs=None, **rest):  # noqa: ANN001, ANN003, ANN201
        """Keep the trainer's metrics of this update."""
        self.figures = logs["objective/scores"], logs["objective/kl"]

    def on_step_end(self, args, state, control, **rest):  # noqa: ANN001, ANN003, ANN201
        """Print them with the times."""
        trl_job.print_line(*self.figures)


def main() -> None:
    """Train the policy."""
    job = trl_job.read()
    tokenizer = AutoTokenizer.from_pretrained(job["sft"], padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(job["sft"])
    # As in TRL's own example, the value model starts from the reward model, head included.
    value = trl_job.reward_model(job)
    rates = (policy.parameters(), job["learning_rate"]), (value.parameters(), job["value_learning_rate"])
    trainer = PPOTrainer(
        args=PPOConfig(**job["trainer"]),
        processing_class=tokenizer,
        model=policy,
        ref_model=AutoModelForCausalLM.from_pretrained(job["sft"]),
        reward_model=trl_job.reward_model(job),
        value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in job["prompts"]]),
        eval_dataset=Dataset.from_list([{"input_ids": ids} for ids in job["prompts"][:1]]),
        optimizers=trl_job.optimizers(rates, job, calls=1),
        callbacks=[Lines(), trl_job.Saving(policy, job, steps=1)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
