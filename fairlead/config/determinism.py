"""The settings that `deterministic = true` requires: each sequence is computed in a batch of its own.

Floating-point sums depend on the other sequences of a batch, on padding and on the number of threads, so
these are fixed. This module knows names and values of settings only; docs/reliability.md states what is
guaranteed.
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
"""Dotted key → default of a deterministic run."""

_REQUIRED: Mapping[str, object] = {
    "ppo.max_staleness": 0,
    "ppo.compile": False,
    "policy.engine": "transformers",
    "reference.engine": "local",
    "reward.tensor_parallel": 1,
    "reference.tensor_parallel": 1,
} | {key: value for key, value in DEFAULTS.items() if not key.endswith(".threads")}
_WHY = {
    "ppo.max_staleness": "the rollouts of an update must not depend on the speed of workers",
    "ppo.compile": "the compiled code depends on the batches that came first",
    "policy.engine": "the numbers of vLLM depend on what else is decoded",
    "reference.engine": "the numbers of vLLM depend on what else is computed",
    "reward.tensor_parallel": "a score must not depend on the number of processes",
    "reference.tensor_parallel": "a log-prob must not depend on the number of processes",
    "policy.max_slots": "a completion must not depend on what else is decoded",
    "reward.batching.max_batch_tokens": "a score must not depend on what else is scored",
    "reward.attention": "a single sequence needs no padding, and must not share computation with others",
    "reward.pack_weights": "only the default layout of weights is tested",
    "reward.watch": "the model must not change during the run",
    "reward.allow_reload": "the model must not change during the run",
    "reward.prefix_cache_bytes": "a score must not depend on what was scored before",
    "reference.batching.max_batch_tokens": "a log-prob must not depend on what else is computed",
    "reference.pack_weights": "only the default layout of weights is tested",
}


def fill(values: dict[str, Any]) -> None:
    """Put the defaults of a deterministic run into the values of its file where they are not set."""
    for key, value in DEFAULTS.items():
        *path, last = key.split(".")
        target = functools.reduce(lambda inner, part: inner.setdefault(part, {}), path, values)
        if isinstance(target, dict):
            target.setdefault(last, value)


def check(config: object) -> None:
    """Check that the settings of a deterministic run keep its guarantee.

    Raises:
        ConfigError: for the first setting that breaks it.
    """
    for key, wanted in _REQUIRED.items():
        got = _setting(config, key)
        if got != wanted:
            why = _WHY.get(key, "it is tested on CPUs only")
            raise ConfigError(key, got=got, allowed=f"{wanted!r} with deterministic = true: {why}")
    if (engine := _setting(config, "reward.engine")) not in ("local", "function"):
        why = "the scores of other engines depend on what else is computed"
        raise ConfigError(
            "reward.engine", got=engine, allowed=f"'local' or 'function' with deterministic = true: {why}"
        )
    for section in _COMPUTING:
        if not _setting(config, f"{section}.threads"):
            raise ConfigError(
                f"{section}.threads",
                got=0,
                allowed="a number above 0 with deterministic = true: sums depend on the number of threads",
            )
    if _setting(config, "data.fresh_rankings") and _setting(config, "guard.action") == "stop":
        raise ConfigError(
            "data.fresh_rankings",
            got=_setting(config, "data.fresh_rankings"),
            allowed="empty with deterministic = true and guard.action = 'stop': labels arrive at any time, "
            "and would decide where the run ends",
        )


def _setting(config: object, key: str) -> object:
    return functools.reduce(getattr, key.split("."), config)
