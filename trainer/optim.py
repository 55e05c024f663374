"""Optimizers and learning-rate schedules of the stages; schedules count steps or updates, never time."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from fairlead.config.preference import PreferenceSection
from fairlead.config.training import LearningRateSchedule, PpoSection, RewardModelSection, SftSection

ADAM_EPSILON = 1e-5
"""In every stage, as in OpenAI's code (The N Implementation Details of RLHF with PPO); 1e-8 takes huge steps
at tiny gradients."""


def learning_rate_factor(step: int, *, total: int, warmup: int, schedule: LearningRateSchedule) -> float:
    """Return the learning-rate factor of a step, from 0: linear to 1 during warm-up, then by the schedule."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    left = max(0.0, (total - step) / max(1, total - warmup))
    return left if schedule == "linear" else (1 - math.cos(math.pi * left)) / 2


def set_scheduled_rate(
    optimizer: torch.optim.Optimizer,
    section: SftSection | RewardModelSection | PreferenceSection,
    step: int,
    total: int,
) -> None:
    """Set the learning rate of a step of a stage that reads files, of `total` steps."""
    factor = learning_rate_factor(
        step,
        total=total,
        warmup=int(total * section.warmup_fraction),
        schedule=section.learning_rate_schedule,
    )
    set_learning_rate(optimizer, section.learning_rate * factor)


def ppo_learning_rate_factor(update: int, section: PpoSection, *, first: int = 0) -> float:
    """Return the learning-rate factor of an update, from 0, of a model that is trained from `first` on."""
    if update < first:
        return 0.0
    update -= first
    total, warmup = section.num_schedule_updates - first, section.warmup_updates
    if section.learning_rate_schedule == "linear" and not warmup:
        # Rounds otherwise than `learning_rate_factor`, and runs must stay equal bit for bit.
        return max(0.0, 1 - update / total)
    return learning_rate_factor(update, total=total, warmup=warmup, schedule=section.learning_rate_schedule)


def learning(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are not frozen."""
    return [parameter for parameter in nn.Module.parameters(model) if parameter.requires_grad]


def adamw(parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float) -> AdamW:
    """Return AdamW without weight decay for vectors (norms and biases)."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in parameters:
        (matrices if parameter.ndim > 1 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # Fused: one kernel for all tensors; with small models a loop over them takes a tenth of the step.
    return AdamW(
        [group for group in groups if group["params"]], lr=learning_rate, eps=ADAM_EPSILON, fused=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clipped_step(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], *, max_norm: float, loss: float
) -> float:
    """Clip the gradients, step, and clear them; return the norm before clipping.

    If the norm or the loss is not finite, weights and optimizer stay unchanged (see `finite`).
    """
    norm: Tensor = torch.nn.utils.clip_grad_norm_(list(parameters), max_norm)
    value = float(norm)
    if math.isfinite(value) and math.isfinite(loss):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value
