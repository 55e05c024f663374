"""Settings of `[ppo]` that have no effect because of another one, for a warning when training starts.

They are not refused: a file may set them for the one estimator and be used with another by a flag.
"""

from __future__ import annotations

from collections.abc import Iterator

from fairlead.config.training import OF_GROUPS, PpoSection

_OF_THE_CRITIC = ("critic_learning_rate", "critic_init", "gae_lambda", "value_clip_range")


def messages(section: PpoSection) -> tuple[str, ...]:
    """Return one message for each setting that decides which of the changed keys have no effect."""
    found = []
    for because, keys in _without_effect(section):
        changed = [key for key in keys if getattr(section, key) != PpoSection.model_fields[key].default]
        if changed:
            names = " and ".join(f"ppo.{key}" for key in changed)
            reason = f"ppo.{because} = {getattr(section, because)!r}"
            found.append(f"{names} {'have' if len(changed) > 1 else 'has'} no effect with {reason}")
    return tuple(found)


def _without_effect(section: PpoSection) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the setting that decides, and the keys that have no effect because of it."""
    if not section.has_critic:
        yield "estimator", _OF_THE_CRITIC
    if section.estimator in OF_GROUPS:
        yield "estimator", ("gae_gamma",)
    if section.estimator != "group":
        yield "estimator", ("group_scale",)
    if section.loss == "cispo":
        yield "loss", ("dual_clip",)
    if section.kl_in == "loss":
        yield "kl_in", ("kl_estimator",)
    if section.kl_control == "fixed":
        yield "kl_control", ("kl_target", "kl_horizon")
    if section.behaviour_weight == "truncate":
        yield "behaviour_weight", ("min_behaviour_weight",)
    if not section.overlong_penalty:
        yield "overlong_penalty", ("overlong_buffer_tokens",)
    if not section.ptx_coefficient:
        yield "ptx_coefficient", ("ptx_batch_size",)
