"""New weights beside the old ones, read and fitted to the model, so that a swap is only a change of pointers.

Stands between a version's files, verified by the store, and the model in use. Reading is slow and happens in
a thread of its own; `apply` is quick and happens between two decoding steps.
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
    """Holds what a version consists of against what the model was prepared for.

    Args:
        theirs: the version's; None for a whole model.
        ours: the model's; None if it has no adapters.

    Raises:
        CorruptWeights: if they do not go together; says what to change.
    """
    if ours is None or theirs is None:
        if ours is not theirs:
            kind, rank = ("an adapter", "above 0") if theirs else ("a whole model", "0")
            raise CorruptWeights(f"it holds {kind}: start this replica with [ppo.lora] rank {rank}")
        return
    different = adapters.differences(theirs.config, ours.config)
    if different:
        raise CorruptWeights(f"[ppo.lora] is not the trainer's: {'; '.join(different)}")
    if theirs.base_fingerprint != ours.base_fingerprint:
        there, here = (
            f"{one.config.get('base_model_name_or_path')!r} ({one.base_fingerprint[:12]})"
            for one in (theirs, ours)
        )
        raise CorruptWeights(
            f"it holds an adapter for {there}, and the base of this replica is {here}: "
            "[policy] path must be the same model for both"
        )


class Replacement:
    """A new value for every parameter and saved buffer of a model; of one with adapters, for those alone."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self._pairs = pairs

    @classmethod
    def read(cls, folder: Path, model: nn.Module) -> Replacement:
        """Reads every *.safetensors of a folder. Tied tensors may stand there under any one of their names.

        Raises:
            CorruptWeights: if a tensor is missing, unknown, has another shape, or a file cannot be read.
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
                        found[id(old)] = _fitted(file.get_tensor(name), old, f"{path}: {name}")
            except (OSError, SafetensorError) as error:
                raise CorruptWeights(f"{path} cannot be read: {error}") from error
        missing = [name for name, old in current.items() if id(old) not in found]
        if missing:
            raise CorruptWeights(f"{folder} lacks {', '.join(missing[:5])}, which the model needs")
        unique = {id(old): old for old in current.values()}
        return cls([(old, found[key]) for key, old in unique.items()])

    def apply(self) -> None:
        """Puts the new values in place. A forward pass must not be running."""
        for old, new in self._pairs:
            old.data = new


def _fitted(new: Tensor, old: Tensor, where: str) -> Tensor:
    if new.shape != old.shape:
        raise CorruptWeights(f"{where} has shape {tuple(new.shape)}, the model's is {tuple(old.shape)}")
    # A copy: what safetensors returns may be a map of the file, which may be pruned.
    return torch.empty_like(old.data).copy_(new)
