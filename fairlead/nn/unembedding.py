"""The output layer of a causal language model, for log-probs from hidden states instead of whole logits.

Used by reference and trainer with `hidden_logprobs`. Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from fairlead.errors import ModelLoadError
from fairlead.nn.trial import UNFIT


def output_layer(model: PreTrainedModel) -> torch.nn.Module:
    """Return the unembedding, H → V."""
    layer = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert isinstance(layer, torch.nn.Module)
    return layer


_LARGE = 100.0
"""Logits at which the check is done: a soft cap is far below it, and hardly changes those of a new model."""


@torch.no_grad()
def check_unembedding(model: PreTrainedModel) -> None:
    """Reject architectures whose logits are not unembedding(hidden), for example soft-capped ones.

    Raises:
        ModelLoadError: if the logits differ; log-probs would otherwise be wrong without notice.
    """
    try:
        difference = _difference(model)
    except UNFIT as error:
        raise ModelLoadError(
            f"{type(model).__name__} does not compute its logits as an output layer after a body "
            f"({type(error).__name__}: {error}), which is not supported"
        ) from error
    tolerance = 1e-3 if model.dtype == torch.float32 else 2e-2
    if not difference <= tolerance:
        raise ModelLoadError(
            f"{type(model).__name__} changes its logits after the output layer (soft cap or scale), "
            "which is not supported"
        )


def _difference(model: PreTrainedModel) -> float:
    """Return the largest difference of large logits from those of the output layer, relative to them."""
    layer, body = output_layer(model), model.base_model
    tokens_BT = torch.tensor([[0, 1]], device=model.device)
    hidden_BTH = body(input_ids=tokens_BT, use_cache=False)[0]
    factor = _LARGE / max(float(layer(hidden_BTH).abs().max()), 1e-6)
    handle = layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * factor, *inputs[1:]))
    try:
        ours_BTV = layer(hidden_BTH).float()
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits.float()
    finally:
        handle.remove()
    return float((logits_BTV - ours_BTV).abs().max()) / _LARGE
