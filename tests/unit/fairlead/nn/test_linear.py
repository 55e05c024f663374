"""Linear layers through oneDNN give the results of PyTorch's, and other layers are not replaced."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fairlead.nn.linear import OneDnnLinear, PackedLinear, pack_linears, product, use_onednn


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


def gradients(model: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    """Return the output and all gradients of a scalar of it."""
    inputs = inputs.clone().requires_grad_()
    model.zero_grad()
    found = model(inputs)
    (found * torch.linspace(-1, 1, found.shape[-1])).sin().sum().backward()
    return [found.detach(), inputs.grad, *(each.grad for each in model.parameters() if each.grad is not None)]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shape", [(64, 192), (3, 5, 192), (2, 192), (192,), (0, 192)])
def test_onednn_layers_train_the_same(shape, frozen):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(192, 256), nn.GELU(), nn.Linear(256, 192, bias=False), nn.Linear(192, 24))
    model[0].requires_grad_(not frozen)
    inputs = torch.randn(shape)
    expected = gradients(model, inputs)
    use_onednn(model)
    assert {type(model[index]) for index in (0, 2, 3)} == {OneDnnLinear}
    assert isinstance(model[0], nn.Linear)
    for ours, theirs in zip(gradients(model, inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(model(inputs), expected[0], rtol=1e-4, atol=1e-5)
    assert pack_linears(model) == (2 if torch.backends.mkldnn.is_available() else 0)


def test_layers_of_a_small_model_are_kept():
    model = Model()
    use_onednn(model)
    assert type(model.plain) is nn.Linear


def test_other_computations_are_those_of_the_ordinary_layer_bit_for_bit():
    torch.manual_seed(0)
    plain = nn.Linear(192, 256)
    ours = nn.Linear(192, 256)
    ours.load_state_dict(plain.state_dict())
    use_onednn(ours)
    inputs = torch.randn(64, 192)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(inputs), plain(inputs))
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(ours(inputs), plain(inputs))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(ours.double()(inputs.double()), plain.double()(inputs.double()))
    left, right = torch.randn(9, 200), torch.randn(300, 200)
    torch.testing.assert_close(product(left, right), left @ right.t(), rtol=1e-4, atol=1e-4)
