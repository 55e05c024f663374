"""The scalar head of reward model and critic: one float32 number per hidden state.

Shapes: B batch, T token positions, H hidden.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fairlead.nn.logprobs import at_least_float32


class ScalarHead(nn.Module):
    """A linear map H → 1, always computed in float32 (scores of bf16 heads depend on the batch)."""

    def __init__(self, hidden_size: int, *, std: float | None = None) -> None:
        """Draw weights with standard deviation `std`; None is 1/√(H+1) (Stiennon et al. 2020), 0 gives
        zeros.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden_size))
        self.bias = nn.Parameter(torch.zeros(1))
        std = 1 / math.sqrt(hidden_size + 1) if std is None else std
        nn.init.normal_(self.weight, std=std) if std > 0 else nn.init.zeros_(self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., H] of any float type to [...] float32."""
        # Mixed precision would convert the product, and every score with it, back to bfloat16.
        with torch.autocast(hidden.device.type, enabled=False):
            hidden, weight, bias = (at_least_float32(part) for part in (hidden, self.weight, self.bias))
            return hidden @ weight[0] + bias
