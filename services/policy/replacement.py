"""New weights, read and checked next to the weights in use, so that a swap only exchanges pointers.

Sits between a version's files, verified by the store, and the model in use. `Replacement.read` is slow and
runs in a separate thread; `apply` is fast and runs between two decoding steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fairlead.errors import CorruptWeights
from fairlead.nn import adapters
from fairlead.transports.weights.base import Adapter


def check_kind(theirs: Adapter | None, ours: Adapter | None) -> None:
    """Check that a version holds what the model was prepared for: a whole model, or the same kind of adapter.

    Args:
        theirs: the adapter of the version; None for a whole model.
        ours: the adapter of the model; None if it has none.

    Raises:
        CorruptWeights: if they differ; says which setting to change.
    """
    if ours is None or theirs is None:
        if ours is not theirs:
            kind, rank = ("an adapter", "above 0") if theirs else ("a whole model", "0")
            raise CorruptWeights(f"the version holds {kind}: start this replica with [ppo.lora] rank {rank}")
        return
    different = adapters.differences(theirs.config, ours.config)
    if different:
        raise CorruptWeights(f"[ppo.lora] differs from the trainer's: {'; '.join(different)}")
    if theirs.base_fingerprint != ours.base_fingerprint:
        their_base, our_base = (
            f"{one.config.get('base_model_name_or_path')!r} ({one.base_fingerprint[:12]})"
            for one in (theirs, ours)
        )
        raise CorruptWeights(
            f"the version holds an adapter for {their_base}, but the base of this replica is {our_base}: "
            "[policy] path must be the same model for both"
        )


class Replacement:
    """A new value for each parameter and saved buffer of a model, or, if it has adapters, only for those."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self._pairs = pairs

    @classmethod
    def read(cls, folder: Path, model: nn.Module) -> Replacement:
        """Read every *.safetensors file of a folder. A tied tensor may be stored under any one of its names.

        Raises:
            CorruptWeights: if a tensor is missing, unknown or has another shape, or a file cannot be read.
        """
        current: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
        if adapters.is_adapted(model):
            current = adapters.tensors(model)
        found: dict[int, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - not a mapping
                        old = current.get(name)
                        if old is None:
                            raise CorruptWeights(f"{path} holds {name}, which the model does not have")
                        found[id(old)] = _checked_copy(file.get_tensor(name), old, f"{path}: {name}")
            except (OSError, SafetensorError) as error:
                raise CorruptWeights(f"{path} cannot be read: {error}") from error
        missing = [name for name, old in current.items() if id(old) not in found]
        if missing:
            raise CorruptWeights(f"{folder} lacks {', '.join(missing[:5])}, which the model needs")
        unique = {id(old): old for old in current.values()}
        return cls([(old, found[key]) for key, old in unique.items()])

    def apply(self) -> None:
        """Replace the values in the model. No forward pass may be running."""
        for old, new in self._pairs:
            old.data = new


def _checked_copy(new: Tensor, old: Tensor, where: str) -> Tensor:
    if new.shape != old.shape:
        raise CorruptWeights(f"{where} has shape {tuple(new.shape)}, the model needs {tuple(old.shape)}")
    # A copy, because safetensors may return a map of the file, and the file may be pruned.
    return torch.empty_like(old.data).copy_(new)
