"""Decide whether a model is decoded with tensors of fixed shape.

Knows the engine's configuration and both running batches, but no requests.
"""

from __future__ import annotations

import logging

from transformers import PreTrainedModel

from fairlead.config.serving import PolicySection
from fairlead.errors import ConfigError
from services.policy.cache_check import check_cache, obstacle
from services.policy.decoder import Decoder
from services.policy.running_batch import RunningBatch
from services.policy.static.decoder import StaticDecoder

logger = logging.getLogger(__name__)

_CHECKED_TOKENS = 64
"""Tokens of a sequence of the check beyond those that attention reaches."""


def choose(model: PreTrainedModel, section: PolicySection, *, slots: int, longest: int) -> RunningBatch:
    """Return the running batch that a section asks for; with `auto`, the static one on a GPU if it is right.

    Args:
        model: the model, on its device.
        section: gives `static_cache`.
        slots: limit on running samples.
        longest: tokens of the longest sequence.

    Raises:
        ModelLoadError: if the model cannot be decoded with a cache of keys and values.
        ConfigError: if `static_cache = "always"` and the architecture does not support it.
    """
    check_cache(model, longest=longest)
    asked = section.static_cache
    if asked == "never" or (asked == "auto" and model.device.type != "cuda"):
        return Decoder(model, slots=slots)
    name = type(model).__name__
    # The sequences of the check may be longer than those that are served.
    checked = longest + _CHECKED_TOKENS
    reason = obstacle(
        model, lambda count: StaticDecoder(model, slots=count, longest=checked), longest=longest
    )
    if not reason:
        return StaticDecoder(model, slots=slots, longest=longest)
    if asked == "always":
        raise ConfigError("policy.static_cache", got=f"always for {name} ({reason})", allowed="auto or never")
    logger.warning("%s is decoded without CUDA graphs: %s", name, reason)
    return Decoder(model, slots=slots)
