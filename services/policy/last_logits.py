"""The logits of the last position, from a pass over some tokens and a cache; shared by both decoders.

Shapes: B rows, T tokens of each, L columns attended to, V vocabulary.
"""

from __future__ import annotations

import inspect

from torch import Tensor
from transformers import Cache, PreTrainedModel


class LastLogits:
    """A model, called for the logits of the last position of each row."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        # Most models can skip the logits of all positions but the last.
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if keeps else {}

    def __call__(
        self, cache: Cache, tokens_BT: Tensor, *, mask_BL: Tensor | None, positions_BT: Tensor
    ) -> Tensor:
        """Return the logits [B, V]; keys and values are added to the cache."""
        outputs = self._model(
            input_ids=tokens_BT,
            attention_mask=mask_BL,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            **self._last_only,
        )
        logits_BV: Tensor = outputs.logits[:, -1]
        return logits_BV
