"""`fairlead quickstart --method NAME`: other ways than PPO with a critic to follow the reward model.

Each is a set of settings of `[ppo]`; everything else stays as in configs/quickstart.toml, so that results can
be compared. docs/learning.md explains the methods.
"""

from __future__ import annotations

from collections.abc import Mapping

from fairlead.config import RunConfig
from fairlead.config.training import PpoSection

DEFAULT = "ppo"
_GROUPS: dict[str, object] = {"num_samples": 4}
# Two of four answers are trained on: half as many in a step give an update as many steps as others.
_PAIRS = _GROUPS | {"estimator": "pairs", "mini_batch_size": 32}
METHODS: Mapping[str, dict[str, object]] = {
    DEFAULT: {},
    "rloo": _GROUPS | {"estimator": "rloo"},
    "grpo": _GROUPS
    | {"estimator": "group", "group_scale": "group", "loss_aggregation": "sequences", "kl_in": "loss"},
    "dr-grpo": _GROUPS | {"estimator": "group", "loss_aggregation": "constant"},
    # Ratios of whole answers differ from 1 by far less than those of tokens: the paper's clip ranges.
    "gspo": _GROUPS
    | {
        "estimator": "group",
        "group_scale": "group",
        "loss": "gspo",
        "clip_range": 3e-4,
        "clip_range_high": 4e-4,
        "kl_in": "loss",
    },
    "cispo": _GROUPS | {"estimator": "rloo", "loss": "cispo"},
    "reinforce++": {"estimator": "reinforce++"},
    "reinforce++-baseline": _GROUPS | {"estimator": "reinforce++_baseline"},
    "online-dpo": _PAIRS | {"loss": "online_dpo"},
    "online-dpo-soft": _PAIRS | {"loss": "online_dpo_soft"},
}
"""Settings of `[ppo]` by the name of the method."""


def configured(config: RunConfig, method: str) -> RunConfig:
    """Return the configuration of a quickstart by another method, in its own folder.

    Args:
        config: that of the quickstart.
        method: a name of `METHODS`.
    """
    if method == DEFAULT:
        return config
    ppo = PpoSection.model_validate(config.ppo.model_dump(exclude_unset=True) | METHODS[method])
    # The name of a run is also that of a folder and of keys, and has no plus.
    name = f"{config.name}-{method.replace('+', 'p')}"
    return config.model_copy(update={"name": name, "ppo": ppo})
