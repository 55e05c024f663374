"""The output layer of a causal language model, for log-probs from hidden states instead of whole logits.

Used by reference and trainer with `hidden_logprobs`. Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from fairlead.errors import ModelLoadError


def output_layer(model: PreTrainedModel) -> torch.nn.Module:
    """Return the unembedding, H → V."""
    layer = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert isinstance(layer, torch.nn.Module)
    return layer


@torch.no_grad()
def check_unembedding(model: PreTrainedModel) -> None:
    """Reject architectures whose logits are not unembedding(hidden), for example soft-capped ones.

    Raises:
        ModelLoadError: if the logits differ; log-probs would otherwise be wrong without notice.
    """
    tokens_BT = torch.tensor([[0, 1]], device=model.device)
    logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
    ours_BTV = output_layer(model)(model.base_model(input_ids=tokens_BT, use_cache=False)[0])
    if not torch.allclose(logits_BTV.float(), ours_BTV.float(), rtol=1e-3, atol=1e-3):
        raise ModelLoadError(
            f"{type(model).__name__} changes its logits after the output layer (soft cap or scale), "
            "which is not supported"
        )
