"""A reward model whose weights are divided among ranks. With one rank it is an ordinary one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fairlead.config.training import RewardModelSection
from fairlead.nn.loading import torch_device, torch_dtype
from fairlead.nn.reward_model import RewardModel, check_reads_last_token
from trainer.distributed import model_folder, sharding
from trainer.distributed.collectives import everywhere
from trainer.distributed.group import Group
from trainer.distributed.sharding import Root
from trainer.sequences import autocast


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

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase, *, merge: bool = True) -> None:
        """See `RewardModel.save`; every rank calls this, with the same folder."""
        assert self.root is not None
        group = self.root.group
        weight, bias = (everywhere(one.detach(), group).cpu() for one in (self.head.weight, self.head.bias))
        head = self.fill_head(weight, bias)
        if group.is_first:
            folder.mkdir(parents=True, exist_ok=True)
        group.barrier()
        model_folder.write(folder, self.model, group, merge=merge, head=head)
        if group.is_first:
            self.save_settings(folder, tokenizer, merge=merge)


def body_and_head(model: RewardModel) -> nn.Module:
    """Return what is trained as one module, for checkpoints."""
    return nn.ModuleDict({"body": model.body, "head": model.head})


def divide(model: RewardModel, section: RewardModelSection, group: Group, *, path: str) -> RewardModel:
    """Divide the weights of a model among all ranks; see `sharding.shard`.

    Args:
        model: the model.
        section: device and dtype.
        group: the ranks.
        path: where the model was loaded from, for messages.

    Raises:
        ModelLoadError: if its score is not its head's output at the last token.
    """
    if group.size == 1:
        return model
    device = torch_device(section.device)
    root = Root(body_and_head(model), group, device=device)
    sharding.shard(root, device, compute=torch_dtype(section), group=group, offload=section.offload)
    with autocast(device, torch_dtype(section)):
        root.check(lambda _: check_reads_last_token(path, model.model))
    return DividedRewardModel(model.body, model.head, model.model, model.is_encoder, root)
