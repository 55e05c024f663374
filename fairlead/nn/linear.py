"""Linear layers on CPUs in float32 through oneDNN.

PyTorch uses MKL, which reaches less than half of the possible rate on AMD processors. The results differ only
by the order of summation. `PackedLinear` keeps its weights in oneDNN's layout, for inference only;
`OneDnnLinear` has ordinary weights, which may be trained, divided among ranks and replaced.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from transformers.pytorch_utils import Conv1D

logger = logging.getLogger(__name__)

ROWS = 8
"""Batches are padded to a multiple of this: oneDNN compiles a kernel for every new number of rows, which
takes as long as about ten batches, and keeps half a MiB for each."""
_SMALLEST_LAYER = 1 << 15
"""Weights of the smallest layer that is replaced: below, compiling kernels for batches of many shapes takes
longer than they save (twice the time for 64 × 64, even at 128 × 128)."""
_LIKE_BATCH_ROWS = 512
"""Number of rows that the layout is optimised for; any other number works too."""
_TOLERANCE = 1e-4
"""Largest difference between both implementations for values near 1; rounding is far below it."""
_SMALLEST_BESIDE_LARGE = 1 << 12
"""Weights of the smallest layer beside large ones, such as an adapter: compiling is little of their time."""
_FEWEST_ROWS = 8
"""With fewer rows MKL is as fast."""


class PackedLinear(nn.Module):
    """x · Wᵀ + b, with W in oneDNN's layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Create a layer; `weight` is [out, in], as in `nn.Linear`."""
        super().__init__()
        ops: Any = torch.ops.mkldnn
        self._linear = ops._linear_pointwise
        self._weight = ops._reorder_linear_weight(weight.detach().contiguous(), _LIKE_BATCH_ROWS)
        self._bias = None if bias is None else bias.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        found: Tensor = self._linear(inputs, self._weight, self._bias, "none", [], "")
        return found


class OneDnnLinear(nn.Linear):
    """x · Wᵀ + b. Where oneDNN does not apply, such as on a GPU or in bfloat16, an ordinary layer."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the base class
        """Map [..., in] to [..., out]."""
        if not _is_faster(input, self.weight, smallest=_SMALLEST_BESIDE_LARGE):
            return super().forward(input)
        found: Tensor = _LinearFunction.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return found


class _LinearFunction(torch.autograd.Function):
    """The layer and its gradients, each as one product of oneDNN."""

    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x · Wᵀ + b."""
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients that are needed."""
        inputs, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        of_inputs, of_weight, of_bias = ctx.needs_input_grad  # type: ignore[attr-defined]
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t()) if of_inputs else None,
            _product(rows.t(), inputs.flatten(0, -2).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def product(left_MK: Tensor, right_NK: Tensor) -> Tensor:
    """Return L · Rᵀ without a gradient, through oneDNN where it is faster."""
    if _is_faster(left_MK, right_NK):
        return _product(left_MK, right_NK)
    return left_MK @ right_NK.t()


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return found


def _is_faster(inputs: Tensor, weight: Tensor, *, smallest: int = _SMALLEST_LAYER) -> bool:
    return (
        weight.numel() >= smallest
        and inputs.dtype == weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and type(weight) in (Tensor, nn.Parameter)  # the tensors of divided layers are of other types
        and inputs.numel() >= _FEWEST_ROWS * inputs.shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and not torch.are_deterministic_algorithms_enabled()
        and not torch.compiler.is_compiling()
        and _works()
    )


def use_onednn(model: nn.Module) -> None:
    """Let the linear layers of a model use oneDNN where it is faster; subclasses of them are kept.

    A model without a large layer is kept as it is.
    """
    found = [module for module in model.modules() if type(module) is nn.Linear]
    if max((module.weight.numel() for module in found), default=0) >= _SMALLEST_LAYER:
        for module in found:
            module.__class__ = OneDnnLinear


@torch.inference_mode()
def pack_linears(model: nn.Module, *, smallest: int = _SMALLEST_LAYER) -> int:
    """Replace the float32 linear layers of a model on the CPU; return their number, 0 if oneDNN is not
    available.

    Layers that share their weight with another, and subclasses that do more than multiply, are kept.

    Args:
        model: its layers are replaced in place.
        smallest: layers with fewer weights are kept.
    """
    if not _works():
        return 0
    shared = _shared_weights(model)
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) not in (nn.Linear, OneDnnLinear, Conv1D) or id(child.weight) in shared:
                continue
            weight = child.weight
            assert isinstance(weight, Tensor)
            is_float32 = weight.device.type == "cpu" and weight.dtype == torch.float32
            if not is_float32 or weight.numel() < smallest:
                continue
            bias = child.bias
            # Conv1D of transformers, used by GPT-2, is a linear layer with its weight transposed.
            rows = weight.t() if isinstance(child, Conv1D) else weight
            setattr(parent, name, PackedLinear(rows, bias if isinstance(bias, Tensor) else None))
            count += 1
    return count


@functools.cache
@torch.inference_mode()
def _works() -> bool:
    """Return whether this PyTorch has the operations and computes the same with them."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    weight, bias, inputs = (torch.rand(size, generator=generator) for size in ((8, 16), (8,), (3, 16)))
    try:
        found = PackedLinear(weight, bias)(inputs)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        logger.info("linear layers keep using MKL: %s", str(error).splitlines()[0])
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
