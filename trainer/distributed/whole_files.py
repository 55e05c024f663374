"""Files of whole tensors, written by all ranks: each tensor is gathered at one rank, which writes it.

One copy of the model crosses the network in all, and a rank holds a few whole tensors at a time. The files
are as one rank would write them: every tensor once, whole, under its own name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from fairlead.transports.weights.base import Shard
from fairlead.transports.weights.disk import sync
from fairlead.transports.weights.manifest import decode_shard, describe_shard
from trainer.distributed.collectives import whole_at
from trainer.distributed.group import Group
from trainer.distributed.sharding import owners
from trainer.tensor_file import Shape, TensorFile, split

_PENDING = 2
"""Whole tensors that a rank holds at most while it writes another one."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Tensors that one rank gets whole, and what it writes for them."""

    tensors: Mapping[str, Tensor]
    """Divided among the ranks; on all of them in the same order."""
    written: Mapping[str, Shape]
    """Every tensor that is written."""
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
    """Gets the whole tensors, and returns what is written."""
    dtype: torch.dtype | None = None
    """Type that they are converted to before they are sent; None: their own."""

    @property
    def nbytes(self) -> int:
        """Bytes that are written."""
        return sum(shape.nbytes for shape in self.written.values())

    @classmethod
    def of(cls, name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> Unit:
        """Return the unit of one tensor that is written as it is, or in another type."""
        stored = stored_type(tensor, dtype)
        return cls({name: tensor}, {name: Shape(tuple(tensor.shape), stored)}, lambda whole: whole, stored)


def write(
    folder: Path, tensors: Mapping[str, Tensor], group: Group, *, limit_bytes: int, dtype: torch.dtype | None
) -> list[Shard]:
    """Write the tensors to `model-<rank>-<number>.safetensors`; every rank calls this.

    Args:
        folder: exists; the same for all ranks.
        tensors: in the same order on all ranks, divided among them.
        group: the ranks.
        limit_bytes: size of a file with more than one tensor.
        dtype: type to which floating-point tensors are converted; None: they are written as they are.

    Returns:
        On rank 0 the files with their digests, all of them synced; on the others nothing.
    """
    units = [Unit.of(name, tensor, dtype) for name, tensor in tensors.items()]
    described = []
    for path in write_units(folder, units, group, limit_bytes=limit_bytes):
        group.progress(f"hashing {path.name}")
        sync(path)
        described.append(asdict(describe_shard(path)))
    found = group.gather(json.dumps(described).encode())
    return [decode_shard(one) for part in found for one in json.loads(part)]


def write_units(
    folder: Path,
    units: Sequence[Unit],
    group: Group,
    *,
    limit_bytes: int,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write each unit at the rank that owns it, to files as those of `write`; every rank calls this.

    Args:
        folder: exists; the same for all ranks.
        units: in the same order on all ranks.
        group: the ranks.
        limit_bytes: size of a file with more than one tensor.
        metadata: written into the header of every file.

    Returns:
        The files of this rank.
    """
    owner_of = owners((unit.nbytes for unit in units), ranks=group.size)
    own = {
        name: shape
        for unit, owner in zip(units, owner_of, strict=True)
        if owner == group.rank
        for name, shape in unit.written.items()
    }
    files = _Files(folder, f"model-{group.rank + 1:05d}", own, limit_bytes=limit_bytes, metadata=metadata)
    try:
        for unit, owner in zip(units, owner_of, strict=True):
            whole = {}
            for name, tensor in unit.tensors.items():
                group.progress(f"gathering {name}")
                found = whole_at(tensor, owner, group, dtype=unit.dtype)
                if found is not None:
                    whole[name] = found
            if owner == group.rank:
                for name, tensor in unit.convert(whole).items():
                    files.add(name, tensor)
        files.close()
    finally:
        files.abandon()
    return files.paths


def stored_type(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the type that a tensor is written in; only floating-point ones are converted to `dtype`."""
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


class _Files:
    """The files of one rank, written in another thread while the next tensors are gathered."""

    def __init__(
        self,
        folder: Path,
        stem: str,
        shapes: Mapping[str, Shape],
        *,
        limit_bytes: int,
        metadata: Mapping[str, str] | None,
    ) -> None:
        sizes = {name: shape.nbytes for name, shape in shapes.items()}
        names = split(sizes, limit_bytes=limit_bytes)
        self._parts = [{name: shapes[name] for name in part} for part in names]
        self._part_of = {name: number for number, part in enumerate(names) for name in part}
        self._paths = [folder / f"{stem}-{part + 1:05d}.safetensors" for part in range(len(names))]
        self._metadata = metadata
        self._open: tuple[int, TensorFile] | None = None
        self._thread = ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []

    @property
    def paths(self) -> list[Path]:
        """Every file, in order."""
        return self._paths

    def close(self) -> None:
        """Wait until everything is written, and close the files."""
        self._wait(0)
        if self._open is not None:
            self._open[1].close()

    def abandon(self) -> None:
        """End the thread and close the file, complete or not."""
        self._thread.shutdown(cancel_futures=True)
        if self._open is not None:
            self._open[1].abandon()

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, the next in the order of the shapes."""
        self._wait(_PENDING - 1)
        self._pending.append(self._thread.submit(self._write, name, tensor))

    def _wait(self, left: int) -> None:
        while len(self._pending) > left:
            self._pending.pop(0).result()

    def _write(self, name: str, tensor: Tensor) -> None:
        part = self._part_of[name]
        if self._open is None or self._open[0] != part:
            if self._open is not None:
                self._open[1].close()
            self._open = part, TensorFile(self._paths[part], self._parts[part], metadata=self._metadata)
        self._open[1].add(name, tensor)
