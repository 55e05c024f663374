"""New weights beside the old ones, read and fitted to the model, so that a swap is only a change of pointers.

Stands between a version's files, verified by the store, and the model in use. Reading is slow and happens in
a thread of its own; `apply` is quick and happens between two decoding steps.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fairlead.errors import CorruptWeights


class Replacement:
    """A new value for every parameter and saved buffer of a model."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self._pairs = pairs

    @classmethod
    def read(cls, folder: Path, model: nn.Module) -> Replacement:
        """Reads every *.safetensors of a folder. Tied tensors may stand there under any one of their names.

        Raises:
            CorruptWeights: if a tensor is missing, unknown, has another shape, or a file cannot be read.
        """
        current = model.state_dict(keep_vars=True)
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
