"""Our settings under TRL's names: the jobs of the programs in `peer`. The table is in docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.against_trl.methods import Method
from fairlead.config import RunConfig
from fairlead.data.records import load_prompts
from fairlead.nn.loading import load_tokenizer
from fairlead.nn.reward_model import REWARD_BIAS
from fairlead.types import WeightVersion
from trainer.optim import ADAM_EPSILON, ppo_learning_rate_factor
from trainer.ppo.dispatch import PromptOrder


def job(method: Method, config: RunConfig, folder: Path, *, save_after: Sequence[int]) -> dict[str, Any]:
    """Return the job of TRL's side.

    Args:
        method: the method.
        config: our run, with the method's settings.
        folder: where TRL writes.
        save_after: updates after which it saves the policy.
    """
    own = _ppo(config) if method.name == "ppo" else _groups(method, config)
    ppo = config.ppo
    bias = json.loads((Path(config.reward.path) / "config.json").read_text()).get(REWARD_BIAS, 0.0)
    own["trainer"] |= {
        "output_dir": str(folder / "trainer"),
        "seed": config.seed,
        "temperature": config.sampling.temperature,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return own | {
        "method": method.name,
        "sft": config.policy.path,
        "reward_model": config.reward.path,
        "reward_bias": float(bias),
        "output": str(folder / "policies"),
        "save_after": list(save_after),
        "prompts": _prompts(config),
        "learning_rate": ppo.learning_rate,
        "value_learning_rate": ppo.critic_learning_rate,
        "learning_rate_factors": [
            ppo_learning_rate_factor(update, config.ppo) for update in range(config.ppo.updates)
        ],
        "adam_epsilon": ADAM_EPSILON,
        "missing_eos_penalty": ppo.missing_eos_penalty,
    }


def _prompts(config: RunConfig) -> list[tuple[int, ...]]:
    """Return the prompts of the whole run in our order, as ids, each once for all of its answers."""
    ppo, sampling = config.ppo, config.sampling
    tokenizer = load_tokenizer(config.policy.path)
    order = PromptOrder(load_prompts(config).train, tokenizer, sampling=sampling, seed=config.seed)
    count = ppo.updates * ppo.batch_size // ppo.num_samples
    return [task.prompt_token_ids for task in order.tasks(range(count), min_version=WeightVersion(0, 0))]


def _ppo(config: RunConfig) -> dict[str, Any]:
    ppo = config.ppo
    return {
        "trainer": {
            "total_episodes": ppo.updates * ppo.batch_size,
            # The whole batch at a time; with accumulation 1, one optimizer step per mini-batch.
            "per_device_train_batch_size": ppo.batch_size,
            "gradient_accumulation_steps": 1,
            "num_mini_batches": ppo.batch_size // ppo.mini_batch_size,
            "local_rollout_forward_batch_size": ppo.batch_size,
            "num_ppo_epochs": ppo.epochs,
            "response_length": config.sampling.max_new_tokens,
            "stop_token": "eos",
            "missing_eos_penalty": ppo.missing_eos_penalty,
            "kl_coef": ppo.kl_coefficient,
            "kl_estimator": ppo.kl_estimator,
            "cliprange": ppo.clip_range,
            "cliprange_value": ppo.value_clip_range,
            "vf_coef": 1.0,
            "gamma": ppo.gae_gamma,
            "lam": ppo.gae_lambda,
            "whiten_rewards": ppo.whiten_rewards,
            "num_sample_generations": 0,
            "logging_steps": 1,
        }
    }


def _groups(method: Method, config: RunConfig) -> dict[str, Any]:
    ppo = config.ppo
    steps = ppo.batch_size // ppo.mini_batch_size
    settings: dict[str, Any] = {
        "max_steps": ppo.updates * steps,
        # A batch of answers is generated at once; each optimizer step trains on a mini-batch of it.
        "per_device_train_batch_size": ppo.mini_batch_size,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": steps,
        "num_iterations": ppo.epochs,
        "num_generations": ppo.num_samples,
        "max_completion_length": config.sampling.max_new_tokens,
        "shuffle_dataset": False,
        "beta": ppo.kl_coefficient,
        "epsilon": ppo.clip_range,
        "max_grad_norm": ppo.max_gradient_norm,
        # Once an update.
        "logging_steps": steps * ppo.epochs,
    }
    if method.name == "grpo":
        settings |= {"scale_rewards": "none", "loss_type": "dr_grpo", "importance_sampling_level": "token"}
    lora = ppo.lora
    adapters = {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": lora.target_modules,
        "task_type": "CAUSAL_LM",
    }
    return {"trainer": settings, "lora": adapters if lora.rank else None}
