"""Linear layers through oneDNN give the results of PyTorch's, and other layers are not replaced."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fairlead.nn.linear import PackedLinear, pack_linears


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.plain = nn.Linear(24, 40)
        self.bare = nn.Linear(40, 24, bias=False)
        self.reversed = Conv1D(7, 24)
        self.embedding = nn.Embedding(7, 7)
        self.tied = nn.Linear(7, 7, bias=False)
        self.tied.weight = self.embedding.weight
        self.to(dtype)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.tied(self.reversed(self.bare(self.plain(inputs).relu())))


@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 24), (2, 3, 24), (700, 24), (0, 24)])
@torch.inference_mode()
def test_packed_layers_compute_the_same(shape):
    torch.manual_seed(0)
    model, inputs = Model(), torch.randn(shape)
    expected = model(inputs)
    assert pack_linears(model) == 0, "too small to gain"
    count = pack_linears(model, smallest=1)
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    assert count == 3
    assert isinstance(model.plain, PackedLinear)
    assert isinstance(model.reversed, PackedLinear)
    assert isinstance(model.tied, nn.Linear), "its weight is the embedding's, too"
    torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-5)


def test_layers_of_other_dtypes_are_kept():
    model = Model(torch.bfloat16)
    assert pack_linears(model, smallest=1) == 0
    assert isinstance(model.plain, nn.Linear)
