"""What is compared: a method, our settings of it, and the TRL release that has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from examples.parcel_help import methods as quickstart_methods

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


def _settings(method: str, **more: object) -> dict[str, object]:
    """Return the settings of the quickstart's method of a name, and more, as overrides."""
    return {f"ppo.{key}": value for key, value in (quickstart_methods.METHODS[method] | more).items()}


METHODS = (
    Method("ppo", "PPO", PPO_RELEASE, 0.7, _settings("ppo", critic_init="reward_model")),
    Method("rloo", "RLOO", GROUPS_RELEASE, 0.5, _settings("rloo")),
    # TRL's has the KL in the loss.
    Method("grpo", "Dr. GRPO", GROUPS_RELEASE, 0.5, _settings("dr-grpo", kl_in="loss")),
)
