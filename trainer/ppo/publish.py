"""Step 7 of a rollout's life: the policy's weights become an immutable version in the weight store.

At the end of a run they become a folder that others load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlead.nn import adapters
from fairlead.transports.weights.base import Adapter, Ancestor, WeightStore
from fairlead.types import WeightVersion
from trainer import durable
from trainer.ppo.actor_critic import unique_tensors

SHARD_BYTES = 2 << 30
"""A shard holds at most so much, one tensor at least: a fetch that fails repeats no more than that."""


def publish(
    store: WeightStore,
    policy: PreTrainedModel,
    version: WeightVersion,
    *,
    parent: WeightVersion | None,
    lineage: Sequence[Ancestor],
    keep: int,
    adapter: Adapter | None = None,
) -> None:
    """Writes the policy's state dict, tied tensors once, and prunes the store to `keep` versions.

    With `adapter` only the adapter is written, and the manifest says what it belongs to.
    """
    tensors: Mapping[str, Tensor] = adapters.tensors(policy) if adapter else unique_tensors(policy)
    with store.publish(version, parent=parent, lineage=lineage, adapter=adapter) as folder:
        for number, shard in enumerate(shards(tensors), start=1):
            save_file(shard, folder / f"model-{number:05d}.safetensors")
    store.prune(keep=keep)


def save_model(
    path: Path,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    merge: bool = False,
) -> None:
    """Leaves model and tokenizer as `save_pretrained` writes them, whole or not at all.

    Of a policy with adapters, those alone; with `merge`, all of it.
    """
    with durable.new_folder(path) as folder:
        adapters.save(policy, folder, merge=merge)
        tokenizer.save_pretrained(folder)


def shards(tensors: Mapping[str, Tensor], *, limit_bytes: int = SHARD_BYTES) -> Iterator[dict[str, Tensor]]:
    """Cuts a state dict into groups of at most `limit_bytes`, in its own order."""
    group: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if group and size + tensor.nbytes > limit_bytes:
            yield group
            group, size = {}, 0
        group[name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    if group:
        yield group
