"""Check, when a model is loaded, that it can be decoded with the slot cache.

Any causal language model works whose only state is keys and values; others keep more state (convolutions,
recurrences).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fairlead.errors import ModelLoadError
from fairlead.nn import trial
from services.policy.decoder import vocabulary_size
from services.policy.slot_cache import SlotCache


def check_cache(model: PreTrainedModel) -> None:
    """Compare a decoding step of two rows of different length with a plain forward pass.

    Raises:
        ModelLoadError: if they differ, because the architecture keeps state that the slot cache does not
            store.
    """
    reason = trial.obstacle(lambda: _difference(model))
    if reason:
        raise ModelLoadError(
            f"{type(model).__name__} cannot be decoded with a cache of only keys and values ({reason})"
        )


def _difference(model: PreTrainedModel) -> str:
    size = vocabulary_size(model)
    prompts = [[token % size for token in range(3, 3 + length)] for length in (7, 4)]
    for ours, prompt in zip(_two_rows(model, prompts), prompts, strict=True):
        ids = torch.tensor([prompt], device=model.device)
        plain = model(input_ids=ids, use_cache=False).logits[0, -1]
        difference = float((ours - plain).abs().max() / plain.abs().max().clamp(min=1))
        if not difference < trial.tolerance(model.dtype):
            return f"logits differ by {difference:.2g}"
    return ""


def _two_rows(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits of each prompt's last token, computed as a decoding step after a padded prefill."""
    cache = SlotCache(len(prompts))
    longest = max(map(len, prompts)) - 1
    starts = torch.tensor([[longest - len(prompt) + 1] for prompt in prompts], device=model.device)
    columns = torch.arange(longest + 1, device=model.device)
    rows = torch.tensor([[0] * (longest + 1 - len(p)) + list(p) for p in prompts], device=model.device)
    mask = (columns >= starts).long()
    positions = (columns - starts).clamp(min=0)
    cache.reserve(left=0, before=longest, after=1)
    cache.open_prefill(first_row=0, end_row=len(prompts), length=longest)
    model(
        input_ids=rows[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=positions[:, :-1],
        past_key_values=cache,
        use_cache=True,
    )
    cache.open_step(rows=len(prompts), left=0)
    logits: Tensor = model(
        input_ids=rows[:, -1:],
        attention_mask=mask,
        position_ids=positions[:, -1:],
        past_key_values=cache,
        use_cache=True,
    ).logits[:, -1]
    return logits
