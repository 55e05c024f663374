"""What is compared: a method, our settings of it, and the TRL release that has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NUM_SAMPLES = 4
"""Answers per prompt of the methods without a critic."""
PPO_RELEASE = "1.12.0"
"""The last one with PPO."""
GROUPS_RELEASE = "1.16.0"


@dataclass(frozen=True, slots=True)
class Method:
    """A method that both sides have."""

    name: str
    """In the names of results and files."""
    title: str
    """For people."""
    release: str
    """Release of TRL."""
    at_most: float
    """Limit of our CPU time per episode, as a multiple of TRL's."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Overrides of configs/quickstart.toml."""


_GROUPS = {"ppo.num_samples": NUM_SAMPLES}

METHODS = (
    Method("ppo", "PPO", PPO_RELEASE, 0.7, {"ppo.estimator": "gae", "ppo.critic_init": "reward_model"}),
    Method("rloo", "RLOO", GROUPS_RELEASE, 0.5, {**_GROUPS, "ppo.estimator": "rloo"}),
    Method(
        "grpo",
        "GRPO",
        GROUPS_RELEASE,
        0.5,
        {
            **_GROUPS,
            "ppo.estimator": "group",
            "ppo.group_scale": "none",
            "ppo.loss_aggregation": "constant",
            "ppo.kl_in": "loss",
        },
    ),
)
"""GRPO is Dr. GRPO: no division by a standard deviation, a constant divisor of the loss, and the KL in it."""
