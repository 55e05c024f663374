"""What `deterministic = true` asks of the other settings: each number is computed alone and alike.

Floating-point sums depend on who shares a batch, on padding and on the number of threads, so these are fixed.
Only names and values of settings stand here; docs/reliability.md says what is promised.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from fairlead.errors import ConfigError

_COMPUTING = ("ppo", "policy", "reward", "reference")

DEFAULTS: Mapping[str, object] = {
    "policy.max_slots": 1,
    "reward.batching.max_batch_tokens": 1,
    "reward.attention": "padded",
    "reward.pack_weights": False,
    "reward.watch": False,
    "reward.allow_reload": "never",
    "reward.prefix_cache_bytes": 0,
    "reference.batching.max_batch_tokens": 1,
    "reference.pack_weights": False,
    **{f"{section}.threads": 1 for section in _COMPUTING},
    **{f"{section}.device": "cpu" for section in _COMPUTING},
}
"""Dotted keys and what they are where a deterministic run leaves them out."""

_REQUIRED: Mapping[str, object] = {"ppo.max_staleness": 0} | {
    key: value for key, value in DEFAULTS.items() if not key.endswith(".threads")
}
_WHY = {
    "ppo.max_staleness": "what an update learns from must not depend on who was fast",
    "policy.max_slots": "an answer must not depend on what else is decoded",
    "reward.batching.max_batch_tokens": "a score must not depend on what else is scored",
    "reward.attention": "alone nothing is padded, and nothing may be shared",
    "reward.pack_weights": "only the plain layout of weights was shown",
    "reward.watch": "the model must stay",
    "reward.allow_reload": "the model must stay",
    "reward.prefix_cache_bytes": "a score must not depend on what was scored before",
    "reference.batching.max_batch_tokens": "a log-prob must not depend on what else is looked up",
    "reference.pack_weights": "only the plain layout of weights was shown",
}


def fill(values: dict[str, Any]) -> None:
    """Puts the defaults of a deterministic run into the values of its file where they are left out."""
    for key, value in DEFAULTS.items():
        *path, last = key.split(".")
        target = functools.reduce(lambda inner, part: inner.setdefault(part, {}), path, values)
        if isinstance(target, dict):
            target.setdefault(last, value)


def check(config: object) -> None:
    """Holds a deterministic run's settings against what its promise needs.

    Raises:
        ConfigError: for the first that breaks it.
    """
    for key, wanted in _REQUIRED.items():
        got = _setting(config, key)
        if got != wanted:
            why = _WHY.get(key, "it was only shown on one kind of device")
            raise ConfigError(key, got=got, allowed=f"{wanted!r} with deterministic = true: {why}")
    for section in _COMPUTING:
        if not _setting(config, f"{section}.threads"):
            raise ConfigError(
                f"{section}.threads",
                got=0,
                allowed="a number above 0 with deterministic = true: sums depend on how they are shared out",
            )
    if _setting(config, "data.fresh_rankings") and _setting(config, "guard.action") == "stop":
        raise ConfigError(
            "data.fresh_rankings",
            got=_setting(config, "data.fresh_rankings"),
            allowed="nothing with deterministic = true and guard.action = 'stop': labels come when people "
            "have time, and would decide where the run ends",
        )


def _setting(config: object, key: str) -> object:
    return functools.reduce(getattr, key.split("."), config)
