"""Compiled blocks compute the same gradients; what cannot be compiled is named."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fairlead.config.training import SftSection
from fairlead.errors import ConfigError
from fairlead.nn.loading import load_causal_lm
from tests.tiny import tiny_causal_lm
from trainer import compiling

compiles = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
"""Warnings of torch itself."""


@pytest.fixture
def model(tmp_path: Path) -> torch.nn.Module:
    return load_causal_lm(str(tiny_causal_lm(tmp_path, num_hidden_layers=6)), SftSection(device="cpu"))


def gradient(model: torch.nn.Module, tokens_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    logits = model(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False).logits
    (logits * mask_BT.unsqueeze(-1)).square().sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches with and without padding, of one row and of several."""
    for rows, columns in ((3, 7), (1, 5), (5, 11)):
        tokens_BT = torch.randint(4, 50, (rows, columns))
        mask_BT = torch.ones_like(tokens_BT)
        yield tokens_BT, mask_BT
        mask_BT = mask_BT.clone()
        mask_BT[0, -2:] = 0
        yield tokens_BT, mask_BT


@pytest.mark.slow
@compiles
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_give_equal_gradients(model: torch.nn.Module, recompute: bool):
    compiled = copy.deepcopy(model)
    section = SftSection(device="cpu", compile=True, gradient_checkpointing=recompute)
    compiling.prepare_blocks(compiled, section, field="sft")
    for tokens_BT, mask_BT in batches():
        expected = gradient(model, tokens_BT, mask_BT)
        assert expected.abs().max() > 1e-3
        found = gradient(compiled, tokens_BT, mask_BT)
        assert (found - expected).norm() < 1e-5 * expected.norm(), "equal but for rounding"


@pytest.mark.slow
@compiles
def test_equal_blocks_are_compiled_once(model: torch.nn.Module):
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiling.compile_blocks(model, field="sft")
    for length in (7, 9, 20):
        tokens_BT = torch.randint(4, 50, (3, length))
        gradient(model, tokens_BT, torch.ones_like(tokens_BT))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 1


@pytest.mark.slow
@compiles
def test_the_blocks_of_a_copy_have_its_own_weights(model: torch.nn.Module):
    tokens_BT = torch.randint(4, 50, (3, 7))
    compiling.compile_blocks(model, field="sft")
    expected = gradient(model, tokens_BT, torch.ones_like(tokens_BT))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(gradient(copied, tokens_BT, torch.ones_like(tokens_BT)), expected)


@pytest.mark.slow
@compiles
def test_a_missing_compiler_is_named(model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(tmp_path / "none"),))
    compiling.compile_blocks(model, field="sft")
    tokens_BT = torch.randint(4, 50, (3, 7))
    with pytest.raises(
        ConfigError, match=r"sft\.compile.*cannot be compiled.*false, or true where a compiler"
    ):
        gradient(model, tokens_BT, torch.ones_like(tokens_BT))


def test_an_architecture_without_known_blocks_is_rejected():
    class Flat(torch.nn.Module):
        pass

    with pytest.raises(ConfigError, match=r"ppo\.compile.*Flat"):
        compiling.compile_blocks(Flat(), field="ppo")
