"""Linear layers on CPUs in float32 through oneDNN, with weights laid out for it once.

PyTorch takes them to MKL, which on AMD's processors reaches less than half of what they can; the sums are the
same but for their order. For models that only compute: the layers keep no weights of the usual kind.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

logger = logging.getLogger(__name__)

ROWS = 8
"""Rows had better come in multiples of it: oneDNN compiles a kernel for every number of rows that it has not
seen, which takes as long as computing some ten of them, and keeps half a MiB of it for good."""
_LIKE_BATCH_ROWS = 512
"""Rows that the layout is made for; others run as well."""
_TOLERANCE = 1e-4
"""Between both ways, of numbers of about 1: rounding is far below it."""


class PackedLinear(nn.Module):
    """x · Wᵀ + b, with W in oneDNN's own layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """`weight` is [out, in], as in `nn.Linear`."""
        super().__init__()
        ops: Any = torch.ops.mkldnn
        self._linear = ops._linear_pointwise
        self._weight = ops._reorder_linear_weight(weight.detach().contiguous(), _LIKE_BATCH_ROWS)
        self._bias = None if bias is None else bias.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        found: Tensor = self._linear(inputs, self._weight, self._bias, "none", [], "")
        return found


@torch.inference_mode()
def pack_linears(model: nn.Module) -> int:
    """Replaces the linear layers of a model on the CPU in float32; gives their number, 0 where it cannot be.

    Weights that belong to several layers stay where they are, as do layers that do more than multiply.
    """
    if not torch.backends.mkldnn.is_available() or not _works():  # type: ignore[no-untyped-call]
        return 0
    shared = _shared_weights(model)
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) not in (nn.Linear, Conv1D) or id(child.weight) in shared:
                continue
            weight = child.weight
            assert isinstance(weight, Tensor)
            if weight.device.type != "cpu" or weight.dtype != torch.float32:
                continue
            bias = child.bias
            # transformers' Conv1D, of GPT-2, is a linear layer with its weight the other way round.
            rows = weight.t() if isinstance(child, Conv1D) else weight
            setattr(parent, name, PackedLinear(rows, bias if isinstance(bias, Tensor) else None))
            count += 1
    return count


def _works() -> bool:
    """Whether this PyTorch has what is needed, and computes the same with it."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, inputs = (torch.rand(size, generator=generator) for size in ((8, 16), (8,), (3, 16)))
    try:
        found = PackedLinear(weight, bias)(inputs)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        logger.info("linear layers stay with MKL: %s", str(error).splitlines()[0])
        return False
    return bool((found - nn.functional.linear(inputs, weight, bias)).abs().max() <= _TOLERANCE)


def _shared_weights(model: nn.Module) -> set[int]:
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is not None:
            (shared if id(weight) in seen else seen).add(id(weight))
    return shared
