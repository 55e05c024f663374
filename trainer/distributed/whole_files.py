"""Files of whole tensors, written by all ranks: each tensor is gathered at one rank, which writes it.

One copy of the model crosses the network in all, and a rank holds a few whole tensors at a time. The files
are as one rank would write them: every tensor once, whole, under its own name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
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
    shapes = {
        name: Shape(tuple(tensor.shape), stored_type(tensor, dtype)) for name, tensor in tensors.items()
    }
    owner_of = dict(
        zip(shapes, owners((shape.nbytes for shape in shapes.values()), ranks=group.size), strict=True)
    )
    own = {name: shape for name, shape in shapes.items() if owner_of[name] == group.rank}
    files = _Files(folder, f"model-{group.rank + 1:05d}", own, limit_bytes=limit_bytes)
    try:
        for name, tensor in tensors.items():
            group.progress(f"gathering {name}")
            whole = whole_at(tensor, owner_of[name], group, dtype=shapes[name].dtype)
            if whole is not None:
                files.add(name, whole)
        files.close()
    finally:
        files.abandon()
    described = []
    for path in files.paths:
        group.progress(f"hashing {path.name}")
        sync(path)
        described.append(asdict(describe_shard(path)))
    found = group.gather(json.dumps(described).encode())
    return [decode_shard(one) for part in found for one in json.loads(part)]


def stored_type(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the type that a tensor is written in; only floating-point ones are converted to `dtype`."""
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


class _Files:
    """The files of one rank, written in another thread while the next tensors are gathered."""

    def __init__(self, folder: Path, stem: str, shapes: Mapping[str, Shape], *, limit_bytes: int) -> None:
        sizes = {name: shape.nbytes for name, shape in shapes.items()}
        names = split(sizes, limit_bytes=limit_bytes)
        self._parts = [{name: shapes[name] for name in part} for part in names]
        self._part_of = {name: number for number, part in enumerate(names) for name in part}
        self._paths = [folder / f"{stem}-{part + 1:05d}.safetensors" for part in range(len(names))]
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
            self._open = part, TensorFile(self._paths[part], self._parts[part])
        self._open[1].add(name, tensor)
