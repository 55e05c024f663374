"""Step 7 of a rollout's life: the policy's weights become an immutable version in the weight store.

At the end of a run the last and the best policy become model folders that other programs load.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlead.config import RunConfig
from fairlead.errors import CorruptCheckpoint
from fairlead.nn import adapters
from fairlead.transports.weights.base import Adapter, Ancestor, Probe, Shard
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.distributed import model_folder, whole_files
from trainer.distributed.group import Group
from trainer.model_state import unique_tensors
from trainer.ppo.actor_critic import ActorCritic
from trainer.ppo.evaluate import BestUpdate
from trainer.tensor_file import split

logger = logging.getLogger(__name__)

SHARD_BYTES = 2 << 30
"""Largest size of a shard with more than one tensor: a failed fetch repeats one shard."""


def publish(
    store: FilesystemWeightStore,
    version: WeightVersion,
    *,
    write: Callable[[Path], Sequence[Shard]],
    parent: WeightVersion | None,
    lineage: Sequence[Ancestor],
    keep: int,
    adapter: Adapter | None = None,
    probe: Probe | None = None,
) -> None:
    """Publish a version and prune the store to `keep` versions.

    Args:
        store: where it is published.
        version: the version.
        write: writes the shards into a folder; returns those that it has described.
        parent: the version that it was trained from.
        lineage: the incarnations whose versions count.
        keep: number of newest versions to keep.
        adapter: what the shards hold, if not a whole model; the manifest names the base that it belongs to.
        probe: what the weights compute.
    """
    described: dict[str, Shard] = {}
    with store.publish(
        version, parent=parent, lineage=lineage, adapter=adapter, probe=probe, described=described
    ) as folder:
        described |= {shard.name: shard for shard in write(folder)}
    store.prune(keep=keep)


def write_shards(models: ActorCritic, folder: Path, *, dtype: torch.dtype = torch.float32) -> list[Shard]:
    """Write the state dict of the policy, tied tensors once; of a policy with adapters only the adapters.

    Every rank calls this and writes a part.

    Args:
        models: the policy.
        folder: exists.
        dtype: type of a whole model's tensors; adapters stay float32.

    Returns:
        On rank 0 the files that are described already.
    """
    policy = models.policy
    tensors: Mapping[str, Tensor] = adapters.tensors(policy) if models.adapter else unique_tensors(policy)
    lower = None if models.adapter or dtype == torch.float32 else dtype
    if models.group.size > 1:
        return whole_files.write(folder, tensors, models.group, limit_bytes=SHARD_BYTES, dtype=lower)
    if lower is not None:
        tensors = {
            name: tensor.detach().to(whole_files.stored_type(tensor, lower))
            for name, tensor in tensors.items()
        }
    for number, shard in enumerate(shards(tensors), start=1):
        save_file(shard, folder / f"model-{number:05d}.safetensors")
    return []


def save_model(
    path: Path,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    merge: bool = False,
    group: Group | None = None,
) -> None:
    """Write model and tokenizer as `save_pretrained` does; the folder appears complete or not at all.

    For a policy with adapters only the adapters are written; with `merge` the whole model.

    Args:
        path: the folder.
        policy: divided among the ranks.
        tokenizer: its tokenizer.
        merge: add the adapters to the weights.
        group: the ranks, all of which call this; only the path of the first one counts.
    """
    group = group or Group.single()
    with model_folder.new_folder(path, group) as folder:
        model_folder.write(folder, policy, group, merge=merge)
        if group.is_first:
            tokenizer.save_pretrained(folder)


def save_best(
    config: RunConfig,
    best: BestUpdate | None,
    checkpoints: CheckpointStore,
    *,
    write: Callable[[Path, Checkpoint], None],
) -> dict[str, object]:
    """Write `policy_best/` from the checkpoint that evaluated best, at the end of a run.

    Args:
        config: the run.
        best: the update with the best evaluation; None: nothing is written.
        checkpoints: where its tensors are.
        write: writes the policy of a checkpoint to a folder.

    Returns:
        `best_update`, `best_eval_reward`, `best_eval_objective`, and with a second reward model
        `best_eval_heldout_reward` for the result; empty if nothing was written.
    """
    path = config.folder.best_policy_model
    shutil.rmtree(path, ignore_errors=True)  # of an earlier run, before --force
    if best is None:
        return {}
    try:
        checkpoint = checkpoints.load(best.version)
    except CorruptCheckpoint as error:
        logger.error("%s is not written: its checkpoint cannot be read: %s", path, error)
        return {}
    write(path, checkpoint)
    return {
        "best_update": best.version.update,
        "best_eval_reward": best.reward,
        "best_eval_objective": best.objective,
        **({} if best.heldout_reward is None else {"best_eval_heldout_reward": best.heldout_reward}),
    }


def shards(tensors: Mapping[str, Tensor], *, limit_bytes: int = SHARD_BYTES) -> Iterator[dict[str, Tensor]]:
    """Split a state dict, in its own order, into groups of at most `limit_bytes` or of one tensor."""
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    for names in split(sizes, limit_bytes=limit_bytes):
        yield {name: tensors[name].detach().cpu().contiguous() for name in names}
