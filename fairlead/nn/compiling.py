"""torch.compile for inference: dynamic shapes, tested when the model is loaded."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from fairlead.errors import ModelLoadError


@torch.inference_mode()
def compile_model(model: PreTrainedModel, *, path: str) -> None:
    """Compile a model's forward pass in place and run it with two shapes.

    Raises:
        ModelLoadError: if that fails, for example without a C++ compiler; names cause and remedy.
    """
    model.compile(dynamic=True)
    try:
        for rows, columns in ((2, 5), (3, 9)):
            tokens_BT = torch.ones(rows, columns, dtype=torch.long, device=model.device)
            model(input_ids=tokens_BT, attention_mask=torch.ones_like(tokens_BT), use_cache=False)
    # The errors of compilers have no closer common ancestor.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelLoadError(
            f"{path!r} cannot be compiled ({type(error).__name__}: {reason}): set reward.compile = false"
        ) from error
