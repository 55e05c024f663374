"""Gradient checkpointing: the same gradient with less memory in every stage, without turning dropout on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fairlead.config.base import ComputeSection
from fairlead.errors import ConfigError
from fairlead.nn.loading import load_causal_lm
from fairlead.nn.reward_model import load_reward_model
from tests.tiny import tiny_causal_lm, tiny_reward_model
from tests.unit.trainer.ppo.ppo_batches import SECTION, double, exact_rollouts
from tests.unit.trainer.reward_model.test_reward_model import RANKINGS
from tests.unit.trainer.sft.test_sft import SEQUENCES
from trainer import memory
from trainer.distributed.sharding import Root
from trainer.ppo import actor_critic, step
from trainer.reward_model import loss as ranking
from trainer.sft import loss

CPU = ComputeSection(device="cpu")


class Kept:
    """Bytes of activations that a forward pass keeps for the backward pass."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()

    @contextmanager
    def counting(self) -> Iterator[None]:
        def look(tensor: torch.Tensor) -> torch.Tensor:
            pointer = tensor.untyped_storage().data_ptr()
            if (
                not isinstance(tensor, torch.nn.Parameter)
                and not tensor.is_leaf
                and pointer not in self._seen
            ):
                self._seen.add(pointer)
                self.bytes += tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
            yield


def gradients(parameters, parts: Callable[[], Iterator[torch.Tensor]]) -> tuple[torch.Tensor, int]:
    """Return the gradients of the sum of the parts, and the most bytes that one of them kept."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in learning:
        parameter.grad = None
    most, found = 0, parts()
    while True:
        kept = Kept()
        with kept.counting():
            part = next(found, None)
        if part is None:
            break
        most = max(most, kept.bytes)
        part.backward()
    return torch.cat([p.grad.flatten() for p in learning if p.grad is not None]), most


def check(whole: tuple[torch.Tensor, int], recomputed: tuple[torch.Tensor, int]) -> None:
    assert whole[0].abs().max() > 1e-3
    assert torch.allclose(recomputed[0], whole[0], rtol=1e-9, atol=1e-12)
    # A block of this size keeps about thirty tensors; with recomputation only its input.
    assert 0 < recomputed[1] < 0.35 * whole[1]


@pytest.mark.parametrize("row_tokens", [0, 16])
def test_sft_recomputes_blocks_with_equal_gradients(tmp_path, row_tokens):
    path = str(tiny_causal_lm(tmp_path, num_hidden_layers=6, vocab_size=60))
    model = load_causal_lm(path, CPU).double()

    def parts() -> Iterator[torch.Tensor]:
        return loss.micro_batch_losses(Root(model), SEQUENCES, max_tokens=16, row_tokens=row_tokens)

    whole = gradients(model.parameters(), parts)
    memory.recompute_blocks(model, field="sft")
    check(whole, gradients(model.parameters(), parts))
    assert not any(module.training for module in model.modules())


def test_reward_model_recomputes_blocks_with_equal_gradients(tmp_path):
    model = load_reward_model(str(tiny_reward_model(tmp_path, num_hidden_layers=6)), CPU)
    model.model.double()
    model.head.double()

    def parts() -> Iterator[torch.Tensor]:
        return ranking.micro_batch_losses(model, RANKINGS, max_tokens=30)

    whole = gradients(model.parameters(), parts)
    memory.recompute_blocks(model.body, field="reward_model")
    check(whole, gradients(model.parameters(), parts))


@pytest.mark.parametrize("rank", [0, 4])
def test_ppo_recomputes_blocks_with_equal_gradients(tmp_path, rank):
    path = str(tiny_causal_lm(tmp_path, num_hidden_layers=6))
    found = []
    for recompute in (False, True):
        section = SECTION.model_copy(
            update={
                "gradient_checkpointing": recompute,
                "lora": SECTION.lora.model_copy(update={"rank": rank}),
            }
        )
        models = double(actor_critic.load(path, section))
        prepared, _ = step.prepare(models, exact_rollouts(), section)
        step.accumulate_gradients(models, prepared, [3, 1, 0, 2], section, temperature=0.7)
        parameters = [*models.policy.parameters(), *models.critic.parameters()]
        found.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
    assert found[0].abs().max() > 1e-3
    assert torch.allclose(found[0], found[1], rtol=1e-9, atol=1e-12)


def test_architecture_dropout_stays_off(tmp_path):
    settings = {
        "vocab_size": 60,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    GPT2LMHeadModel(GPT2Config(**settings, resid_pdrop=0.5, attn_pdrop=0.5)).save_pretrained(tmp_path)
    model = load_causal_lm(str(tmp_path), CPU)
    tokens = torch.tensor([[1, 5, 6]])
    expected = model(tokens).logits
    memory.recompute_blocks(model, field="sft")
    assert torch.equal(model(tokens).logits, expected)


def test_architecture_without_known_blocks_is_rejected():
    class Flat(torch.nn.Module):
        pass

    with pytest.raises(ConfigError, match=r"ppo\.gradient_checkpointing.*Flat"):
        memory.recompute_blocks(Flat(), field="ppo")
