"""What each rank of a test does: trains tiny models together with the others, and compares with one rank."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fairlead.config.training import LoraSection
from tests.architectures import causal_lm
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.ppo_batches import SECTION, outcome
from trainer.distributed.collectives import whole_at
from trainer.distributed.group import Group
from trainer.model_state import trained_tensors
from trainer.ppo import actor_critic, batch, step
from trainer.ppo.actor_critic import ActorCritic

WHOLE = Group.single()
ROLLOUTS = 9
"""With 4 in a mini-batch the last one has a single rollout, so that other ranks have nothing to do."""


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    model: str
    double: bool = True
    lora: bool = False
    recompute: bool = False
    compiled: bool = False
    tied: bool = False
    critic_free: bool = False
    pairs: bool = False

    @property
    def name(self) -> str:
        return " ".join([self.model, *(key for key, value in vars(self).items() if value is True)])


CASES = (
    Case("qwen2", recompute=True),
    Case("qwen3"),
    Case("llama"),
    Case("gpt2"),
    Case("gpt_neox"),
    Case("tiny", tied=True),
    Case("tiny", double=False, tied=True, recompute=True),
    Case("gpt_neox", double=False),
    Case("llama", lora=True),
    Case("gpt2", double=False, lora=True, recompute=True),
    Case("tiny", tied=True, critic_free=True),
    Case("tiny", tied=True, critic_free=True, pairs=True),
    Case("llama", double=False, recompute=True, compiled=True),
)

WITHOUT_CRITIC = {
    "estimator": "rloo",
    "num_samples": 3,
    "loss": "gspo",
    "kl_in": "loss",
    "behaviour_weight": "mask_sequences",
}
"""What combines the tokens of an answer, and the answers of a step."""

PAIRS = {"estimator": "pairs", "num_samples": 3, "loss": "online_dpo_soft"}
"""Three pairs of the groups; the last mini-batch has one, so that other ranks have nothing to do."""

FAST = (3, 6, 8, 10, 11)
"""Numbers of the cases that `make test` tries."""


def make_models(folder: Path) -> None:
    """Save the models of the cases."""
    for name in ("qwen2", "qwen3", "llama", "gpt2", "gpt_neox"):
        causal_lm(name, folder / name)
    tiny_causal_lm(folder / "tiny")
    tiny_causal_lm(folder / "tiny-tied", tie_word_embeddings=True)


def section_of(case: Case):
    """The recipe of a case: several micro-batches in each mini-batch."""
    return SECTION.model_copy(
        update={
            "max_micro_batch_tokens": 24,
            "gradient_checkpointing": case.recompute,
            "compile": case.compiled,
            "offload": case.recompute,  # changes no number
            "lora": LoraSection(rank=2, alpha=8) if case.lora else LoraSection(),
            **((PAIRS if case.pairs else WITHOUT_CRITIC) if case.critic_free else {}),
        }
    )


def models_of(case: Case, folder: Path, group: Group) -> ActorCritic:
    """Policy and critic of a case, divided among the ranks."""
    found = actor_critic.load(str(folder / (case.model + "-tied" * case.tied)), section_of(case), seed=3)
    if case.double:
        for model in trained(found):
            nn.Module.double(model)
    return ActorCritic(found.policy, found.critic, section_of(case), adapter=found.adapter, group=group)


def trained(models: ActorCritic) -> list[nn.Module]:
    """The policy, and the critic if there is one."""
    return [model for model in (models.policy, models.critic) if model is not None]


def rollouts_of(case: Case) -> batch.RolloutBatch:
    """Rollouts of very different lengths, two of them stale; with adapters, half without log π_ref; without a
    critic, in groups.
    """
    draw = random.Random(5)
    outcomes = []
    for task in range(ROLLOUTS):
        prompt = tuple(draw.randrange(4, 50) for _ in range(draw.randrange(1, 9)))
        answer = tuple(draw.randrange(4, 50) for _ in range(draw.randrange(1, 14)))
        outcomes.append(outcome(task, prompt, answer, draw.uniform(-2, 2), 3 if task in (2, 7) else 4))
    found = batch.from_outcomes(outcomes, torch.device("cpu"), version=outcomes[0].task.min_version)
    assert found is not None
    found = replace(found, stale_B=torch.tensor([task in (2, 7) for task in range(ROLLOUTS)]))
    if case.critic_free:
        found = replace(found, groups_B=torch.arange(ROLLOUTS) // WITHOUT_CRITIC["num_samples"])
    if case.lora:
        missing_N = found.per_token(torch.arange(ROLLOUTS) % 2 == 0)
        found = replace(found, reference_N=found.reference_N.masked_fill(missing_N, torch.nan))
    names = ("behaviour_N", "reference_N", "scores_B")
    return replace(found, **{name: getattr(found, name).double() for name in names}) if case.double else found


def gradients(models: ActorCritic) -> Iterator[Tensor]:
    """The gradient of every parameter, divided or not."""
    for model in trained(models):
        for parameter in nn.Module.parameters(model):
            if parameter.grad is not None:
                yield parameter.grad


def weights(models: ActorCritic) -> list[Tensor]:
    """The trained tensors of every model."""
    return [tensor for model in trained(models) for tensor in trained_tensors(model).values()]


def whole(tensors: list[Tensor], group: Group) -> Tensor:
    """All of them in one row, on rank 0; elsewhere nothing."""
    found = [whole_at(tensor, 0, group) for tensor in tensors]
    return torch.cat(
        [tensor.detach().flatten().double() for tensor in found if tensor is not None] or [torch.zeros(0)]
    )


@dataclass
class Trained:
    """What training gave."""

    gradient: Tensor
    start: Tensor
    weights: Tensor
    figures: dict[str, float]


def train(case: Case, folder: Path, group: Group) -> Trained:
    """One gradient, and then an update of three optimizer steps."""
    models, section, rollouts = models_of(case, folder, group), section_of(case), rollouts_of(case)
    start = whole(weights(models), group)
    prepared, figures = step.prepare(models, rollouts, section, temperature=0.8)
    step.accumulate_gradients(models, prepared, prepared.learned, section, temperature=0.8)
    gradient = whole(list(gradients(models)), group)
    for optimizer in models.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    figures |= step.optimise(models, prepared, section, temperature=0.8, seed=1, update=0)
    models.check_weights()
    return Trained(gradient, start, whole(weights(models), group), figures)


def compare(group: Group, folder: str, numbers: list[int]) -> list[dict[str, object]]:
    """The differences of this many ranks from one, for some of the cases, on rank 0."""
    found = []
    for case in (CASES[number] for number in numbers):
        ours = train(case, Path(folder), group)
        if group.rank:
            continue
        theirs = train(case, Path(folder), WHOLE)
        scale = float(theirs.gradient.abs().max())
        found.append(
            {
                "case": case.name,
                "double": case.double,
                "gradient": float((ours.gradient - theirs.gradient).abs().max()) / scale,
                "weights": float((ours.weights - theirs.weights).abs().max())
                / float(theirs.weights.abs().max()),
                "figures": max(
                    abs(ours.figures[name] - value) / max(1.0, abs(value))
                    for name, value in theirs.figures.items()
                ),
                "moved": float((ours.weights - ours.start).abs().max()),
            }
        )
    return found


def check_equal_to_one_rank(results: list[dict[str, object]]) -> None:
    """Check what `compare` returned."""
    for one in results:
        bound = 1e-12 if one["double"] else 1e-5
        for what in ("gradient", "weights", "figures"):
            assert one[what] <= bound, one
        assert one["moved"] > 1e-4, one
