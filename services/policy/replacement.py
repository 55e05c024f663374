"""New weights, read and checked next to the weights in use, so that a swap only exchanges pointers.

Sits between a version's files, verified by the store, and the model in use. `Replacement.read` is slow and
runs in a separate thread; `apply` is fast and runs between two decoding steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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


class ModelTensors:
    """The tensors that every version must hold: those of a model, or if it has adapters, only those."""

    def __init__(self, model: nn.Module) -> None:
        """`model` has shapes, but need not have values."""
        current: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
        if adapters.is_adapted(model):
            current = adapters.tensors(model)
        self._by_name = current

    def named(self, path: Path, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the tensor that one of a file is for; a tied tensor may be stored under any of its names.

        Raises:
            CorruptWeights: if the model has none of this name, or it has another shape.
        """
        found = self._by_name.get(name)
        if found is None:
            raise CorruptWeights(f"{path} holds {name}, which the model does not have")
        if shape != tuple(found.shape):
            raise CorruptWeights(f"{path}: {name} has shape {shape}, the model needs {tuple(found.shape)}")
        return found

    def check_complete(self, folder: Path, found: Collection[int]) -> None:
        """Check that a folder holds everything.

        Args:
            folder: the version.
            found: the `id` of each tensor that `named` returned for it.

        Raises:
            CorruptWeights: if a tensor is missing.
        """
        missing = [name for name, tensor in self._by_name.items() if id(tensor) not in found]
        if missing:
            raise CorruptWeights(f"{folder} lacks {', '.join(missing[:5])}, which the model needs")


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
        tensors = ModelTensors(model)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - not a mapping
                        new = file.get_tensor(name)
                        old = tensors.named(path, name, tuple(new.shape))
                        # A copy, because safetensors may return a map of the file, which may be pruned.
                        found[id(old)] = old, torch.empty_like(old.data).copy_(new)
            except (OSError, SafetensorError) as error:
                raise CorruptWeights(f"{path} cannot be read: {error}") from error
        tensors.check_complete(folder, found)
        return cls(list(found.values()))

    def apply(self, *, in_place: bool = False) -> None:
        """Replace the values in the model. No forward pass may be running.

        Args:
            in_place: copy them into the memory of the old ones, whose addresses are in CUDA graphs.
        """
        for old, new in self._pairs:
            if in_place:
                old.data.copy_(new)
            else:
                old.data = new
