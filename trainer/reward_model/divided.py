"""A reward model whose weights are divided among ranks. With one rank it is an ordinary one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fairlead.config.training import RewardModelSection
from fairlead.nn.loading import torch_device, torch_dtype
from fairlead.nn.reward_model import RewardModel
from trainer.distributed import sharding
from trainer.distributed.group import Group
from trainer.distributed.sharding import Root


@dataclass(frozen=True, slots=True)
class DividedRewardModel(RewardModel):
    """A reward model that all ranks call together, each with sequences of its own."""

    root: Root | None = None
    """Body and head, divided."""

    @property
    def device(self) -> torch.device:
        """See `RewardModel.device`; the weights themselves may be in the memory of the host."""
        assert self.root is not None
        return self.root.device

    def scores(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """See `RewardModel.scores`."""
        assert self.root is not None
        found: Tensor = self.root(lambda _: RewardModel.scores(self, tokens_BT, lengths_B))
        return found


def body_and_head(model: RewardModel) -> nn.Module:
    """Return what is trained as one module, for checkpoints."""
    return nn.ModuleDict({"body": model.body, "head": model.head})


def divide(model: RewardModel, section: RewardModelSection, group: Group) -> RewardModel:
    """Divide the weights of a model among all ranks; see `sharding.shard`."""
    if group.size == 1:
        return model
    device = torch_device(section.device)
    root = Root(body_and_head(model), group, device=device)
    sharding.shard(root, device, compute=torch_dtype(section), group=group, offload=section.offload)
    return DividedRewardModel(model.body, model.head, model.model, model.is_encoder, root)
