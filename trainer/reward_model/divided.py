"""A reward model whose weights are divided among ranks. With one rank it is an ordinary one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fairlead.nn.reward_model import RewardModel
from trainer.distributed import sharding
from trainer.distributed.group import Group
from trainer.distributed.sharding import Root


@dataclass(frozen=True, slots=True)
class DividedRewardModel(RewardModel):
    """A reward model that all ranks call together, each with sequences of its own."""

    root: Root | None = None
    """Body and head, divided."""

    def scores(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """See `RewardModel.scores`."""
        assert self.root is not None
        found: Tensor = self.root(lambda _: RewardModel.scores(self, tokens_BT, lengths_B))
        return found


def body_and_head(model: RewardModel) -> nn.Module:
    """Return what is trained as one module, for checkpoints."""
    return nn.ModuleDict({"body": model.body, "head": model.head})


def divide(model: RewardModel, device: torch.device, *, compute: torch.dtype, group: Group) -> RewardModel:
    """Divide the weights of a model among all ranks; see `sharding.shard`."""
    if group.size == 1:
        return model
    root = Root(body_and_head(model), group)
    sharding.shard(root, device, compute=compute, group=group)
    return DividedRewardModel(model.body, model.head, model.model, model.is_encoder, root)
