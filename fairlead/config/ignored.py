"""Settings that have no effect because of another one, for a warning when a stage starts.

They are not refused: a file may set them for the one engine or estimator and be used with another by a flag.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import BaseModel

from fairlead.config.training import OF_GROUPS, PpoSection

if TYPE_CHECKING:
    from fairlead.config.run import RunConfig

_Pair = tuple[str, tuple[str, ...]]
"""The setting that decides, and the keys that have no effect because of it."""

_OF_THE_CRITIC = ("critic_learning_rate", "critic_init", "gae_lambda", "value_clip_range")
_OF_PROCESSES: tuple[tuple[str, tuple[object, ...], tuple[str, ...]], ...] = (
    ("policy.engine", ("vllm",), ("policy.vllm",)),
    ("policy.engine", ("transformers",), ("policy.static_cache",)),
    ("reward.engine", ("vllm",), ("reward.vllm",)),
    ("reward.engine", ("triton",), ("reward.triton",)),
    (
        "reward.engine",
        ("local", "combined"),
        (
            *("reward.attention", "reward.share_prompts", "reward.prefix_cache_bytes", "reward.pack_weights"),
            *("reward.compile", "reward.ensemble", "reward.ensemble_std_weight"),
        ),
    ),
    ("reward.engine", ("function", "combined"), ("reward.function_timeout_seconds",)),
    ("reward.engine", ("local", "vllm", "function", "combined"), ("reward.watch",)),
    ("reward.watch", (True,), ("reward.watch_seconds",)),
    ("reference.engine", ("vllm",), ("reference.vllm",)),
    ("reference.engine", ("local",), ("reference.pack_weights",)),
    (
        "reference.engine",
        ("local", "vllm"),
        ("reference.batching", "reference.tensor_parallel", "reference.replicas"),
    ),
    (
        "weights.transport",
        ("grpc",),
        (
            *("weights.cache", "weights.chunk_bytes", "weights.relay_address", "weights.relay_fan_out"),
            *("weights.direct", "weights.direct_port", "weights.max_send_bytes_per_second"),
        ),
    ),
)
"""A setting, its values with which keys have an effect, and these keys."""
_OF_RANKS = ("checkpoint.asynchronous", "sft.offload", "reward_model.offload", "ppo.offload")


def of_ppo(section: PpoSection) -> tuple[str, ...]:
    """Return a message for each setting of `[ppo]` because of which changed keys have no effect."""
    return tuple(_messages(section, _of_ppo(section), prefix="ppo."))


def of_processes(config: RunConfig) -> tuple[str, ...]:
    """As `of_ppo`, for the sections of services, weights, checkpoints and ranks."""
    return tuple(_messages(config, _of_processes(config), prefix=""))


def _messages(root: BaseModel, pairs: Iterator[_Pair], *, prefix: str) -> Iterator[str]:
    defaults: BaseModel = type(root).model_construct()
    for because, keys in pairs:
        changed = [key for key in keys if _setting(root, key) != _setting(defaults, key)]
        if changed:
            names = " and ".join(f"{prefix}{key}" for key in changed)
            reason = f"{prefix}{because} = {_setting(root, because)!r}"
            yield f"{names} {'have' if len(changed) > 1 else 'has'} no effect with {reason}"


def _setting(root: BaseModel, key: str) -> object:
    return functools.reduce(getattr, key.split("."), root)


def _of(section: str, *keys: str) -> tuple[str, ...]:
    return tuple(f"{section}.{key}" for key in keys)


def _of_ppo(section: PpoSection) -> Iterator[_Pair]:
    rows: tuple[tuple[object, str, tuple[str, ...]], ...] = (
        (section.has_critic, "estimator", _OF_THE_CRITIC),
        (section.estimator not in OF_GROUPS, "estimator", ("gae_gamma",)),
        (section.estimator == "group", "estimator", ("group_scale",)),
        (section.dynamic_sampling, "dynamic_sampling", ("max_extra_batches",)),
        (section.loss != "cispo", "loss", ("dual_clip",)),
        (section.kl_in != "loss", "kl_in", ("kl_estimator",)),
        (section.kl_control == "adaptive", "kl_control", ("kl_target", "kl_horizon")),
        (section.behaviour_weight != "truncate", "behaviour_weight", ("min_behaviour_weight",)),
        (section.overlong_penalty, "overlong_penalty", ("overlong_buffer_tokens",)),
        (section.ptx_coefficient, "ptx_coefficient", ("ptx_batch_size",)),
    )
    for has_effect, because, keys in rows:
        if not has_effect:
            yield because, keys


def _of_processes(config: RunConfig) -> Iterator[_Pair]:
    for because, values, keys in _OF_PROCESSES:
        if _setting(config, because) not in values:
            yield because, keys
    if config.ranks.nodes * config.ranks.per_node == 1:
        yield "ranks.per_node", _OF_RANKS
    if not config.keys.file:
        yield "keys.file", ("keys.redis_url",)
