"""The tensors of a checkpoint in slices: each rank writes the part that it holds, any number of ranks reads.

A file `rank-00000.safetensors` has the slices of one rank, named `<group>/<tensor>`; the manifest says which
rows, and with tensor parallelism which columns, are where. Without pickle, and without moving a tensor
between ranks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from fairlead.errors import CorruptCheckpoint
from fairlead.transports.weights.disk import sync
from fairlead.transports.weights.manifest import sha256
from trainer.distributed.blocks import block_of, is_copy
from trainer.distributed.group import Group
from trainer.distributed.sharding import is_divided, local
from trainer.tensor_file import Shape, TensorFile

Groups = Mapping[str, Mapping[str, Tensor]]
"""Tensors by the name of their group, such as `policy_optimizer`, then by their own name."""

SUFFIX = ".safetensors"


def write(folder: Path, tensors: Groups, group: Group) -> dict[str, object]:
    """Write the slices of this rank; return on rank 0 the entries `files`, `groups` and `tensors` of the
    manifest.

    Tensors that are not divided are written by rank 0. Every file is synced when this returns on rank 0.
    """
    slices: dict[str, Tensor] = {}
    places: dict[str, dict[str, object]] = {}
    for name, tensor in _joined(tensors):
        if is_divided(tensor) and not is_copy(tensor, group.rank):
            block = block_of(tensor, group.rank)
            slices[name] = local(tensor).contiguous()
            columns = {"columns": block.columns} if block.columns is not None else {}
            places[name] = {"rows": block.rows, **columns}
        elif not is_divided(tensor) and group.rank == 0:
            slices[name] = tensor
            places[name] = {"rows": None}
    file = f"rank-{group.rank:05d}{SUFFIX}"
    digest = hashlib.sha256()
    target = TensorFile(
        folder / file, {name: Shape.of(tensor) for name, tensor in slices.items()}, digest=digest
    )
    try:
        for name, tensor in slices.items():
            group.progress(f"writing {name} to {file}")
            target.add(name, tensor)
        target.close()
    finally:
        target.abandon()
    sync(folder / file)
    own = {"file": file, "sha256": digest.hexdigest(), "places": places}
    written = group.gather(json.dumps(own).encode())
    return _listing([json.loads(one) for one in written], tensors) if group.rank == 0 else {}


def _joined(tensors: Groups) -> Iterator[tuple[str, Tensor]]:
    for group, named in tensors.items():
        for name, tensor in named.items():
            yield f"{group}/{name}", tensor


def _listing(written: list[dict[str, Any]], tensors: Groups) -> dict[str, object]:
    entries = {
        name: {
            "shape": list(tensor.shape),
            "slices": [
                {"file": one["file"], **one["places"][name]}
                for one in sorted(written, key=lambda one: _order(one["places"].get(name, {})))
                if name in one["places"]
            ],
        }
        for name, tensor in _joined(tensors)
    }
    return {
        "files": {one["file"]: one["sha256"] for one in written},
        "groups": list(tensors),
        "tensors": entries,
    }


def _order(place: Mapping[str, Any]) -> tuple[int, int]:
    """Return what slices of a tensor are sorted by: first columns, then rows."""
    return (place.get("columns") or (0,))[0], (place.get("rows") or (0,))[0]


def has_columns(manifest: Mapping[str, Any]) -> bool:
    """Return whether slices of a manifest are of columns, too."""
    return any("columns" in one for entry in manifest["tensors"].values() for one in entry["slices"])


@dataclass(frozen=True, slots=True)
class _Slice:
    file: str
    first: int
    end: int
    columns: tuple[int, int] | None = None


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of one group in a checkpoint, read when they are asked for, whole or by rows."""

    def __init__(self, files: StoredFiles, prefix: str, entries: Mapping[str, Any]) -> None:
        self._files = files
        self._prefix = prefix
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._slices: dict[str, tuple[_Slice, ...]] = {}
        for name, entry in entries.items():
            self._shapes[name] = tuple(map(int, entry["shape"]))
            rows = self._shapes[name][0] if self._shapes[name] else 0
            self._slices[name] = tuple(
                _Slice(str(one["file"]), *_range(one["rows"] or (0, rows)), _columns(one))
                for one in entry["slices"]
            )
            self._check(name, rows)

    def _check(self, name: str, rows: int) -> None:
        """Check that the slices are all columns, and all rows of each of them, once each and in order."""
        found, shape = self._slices[name], self._shapes[name]
        strips = list(dict.fromkeys(one.columns for one in found))
        for columns in strips:
            end = 0
            for one in (each for each in found if each.columns == columns):
                if one.first != end or one.end < one.first:
                    raise ValueError(f"the slices of {name} do not follow one another: {found}")
                end = one.end
            if end != rows or (not shape and len(found) > 1):
                raise ValueError(f"the slices of {name} end at row {end} of {rows}")
        if strips != [None]:
            edges = [0, *(columns[1] if columns else -1 for columns in strips)]
            starts = [columns[0] if columns else -1 for columns in strips]
            if edges[:-1] != starts or len(shape) < 2 or edges[-1] != shape[1]:
                raise ValueError(f"the slices of {name} are not all of its columns once: {found}")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a whole tensor without reading it."""
        return self._shapes[name]

    def rows(self, name: str, first: int, end: int) -> Tensor:
        """Read some rows of a tensor.

        Raises:
            CorruptCheckpoint: if a file is missing or damaged.
        """
        strips: dict[tuple[int, int] | None, list[Tensor]] = {}
        for one in self._slices[name]:
            if max(first, one.first) < min(end, one.end):
                within = max(first, one.first) - one.first, min(end, one.end) - one.first
                strips.setdefault(one.columns, []).append(
                    self._files.rows(one.file, self._prefix + name, *within)
                )
        shape = (end - first, *self._shapes[name][1:])
        if not strips:  # no row: any slice gives the type
            nothing = self._files.rows(self._slices[name][0].file, self._prefix + name, 0, 0)
            return nothing.new_empty(shape)
        parts = [rows[0] if len(rows) == 1 else torch.cat(rows) for rows in strips.values()]
        return self._checked(name, parts[0] if len(parts) == 1 else torch.cat(parts, 1), shape)

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if shape:
            return self.rows(name, 0, shape[0])
        return self._checked(name, self._files.whole(self._slices[name][0].file, self._prefix + name), shape)

    def _checked(self, name: str, found: Tensor, shape: tuple[int, ...]) -> Tensor:
        if tuple(found.shape) != shape:
            raise CorruptCheckpoint(
                f"{self._prefix}{name} has the shape {tuple(found.shape)} in its files, and {shape} in the "
                "manifest"
            )
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class StoredFiles:
    """The files of a checkpoint's folder, each verified before it is first read."""

    def __init__(self, folder: Path, digests: Mapping[str, str]) -> None:
        self._folder = folder
        self._digests = digests
        self._open: dict[str, Any] = {}
        self._verified_files: set[str] = set()

    def verify(self) -> None:
        """Verify every file now.

        Raises:
            CorruptCheckpoint: if one is missing or its SHA-256 differs; the message names it.
        """
        for name in self._digests:
            self._verified(name)

    def rows(self, file: str, name: str, first: int, end: int) -> Tensor:
        """Read rows of a tensor, counted from the first row in the file."""
        with self._explained(file):
            found: Tensor = self._opened(file).get_slice(name)[first:end]
            return found

    def whole(self, file: str, name: str) -> Tensor:
        """Read a tensor, which may be a scalar."""
        with self._explained(file):
            found: Tensor = self._opened(file).get_tensor(name)
            return found

    def entries(self, file: str) -> dict[str, object]:
        """Return the entry of each tensor in a file that holds whole ones, as in a manifest."""
        opened = self._opened(file)
        return {
            name: {"shape": opened.get_slice(name).get_shape(), "slices": [{"file": file, "rows": None}]}
            for name in opened.keys()  # noqa: SIM118  # not a dict
        }

    def _opened(self, file: str) -> Any:  # noqa: ANN401  # safetensors has no types
        if file not in self._open:
            path = self._verified(file)
            with self._explained(file):
                # Held open: another trainer may delete the checkpoint while it is read.
                self._open[file] = safe_open(path, framework="pt")
        return self._open[file]

    @contextmanager
    def _explained(self, file: str) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise CorruptCheckpoint(f"{self._folder / file}: {type(error).__name__}: {error}") from error

    def _verified(self, file: str) -> Path:
        path = self._folder / file
        if file not in self._verified_files:
            with self._explained(file):
                found = sha256(path)
            if found != self._digests.get(file):
                raise CorruptCheckpoint(f"{path}: its SHA-256 differs from the manifest")
            self._verified_files.add(file)
        return path


def _range(numbers: Sequence[Any]) -> tuple[int, int]:
    first, end = map(int, numbers)
    return first, end


def _columns(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    if entry.get("columns") is None:
        return None
    first, end = _range(entry["columns"])
    if not 0 <= first < end:
        raise ValueError(f"columns {first} to {end}")
    return first, end


def open_groups(files: StoredFiles, manifest: Mapping[str, Any]) -> Groups:
    """Return the tensors of a checkpoint, which are read when they are asked for.

    Without an entry `tensors` in the manifest, each group is a file of whole tensors.

    Raises:
        CorruptCheckpoint: if a file cannot be read.
        ValueError, KeyError, TypeError, AttributeError: if an entry is invalid.
    """
    if "tensors" not in manifest:
        return {
            file.removesuffix(SUFFIX): StoredTensors(files, "", files.entries(file))
            for file in manifest["files"]
            if file.endswith(SUFFIX)
        }
    groups: dict[str, dict[str, Any]] = {str(group): {} for group in manifest["groups"]}
    for joined, entry in manifest["tensors"].items():
        group, _, name = joined.partition("/")
        groups[group][name] = entry
    return {group: StoredTensors(files, f"{group}/", found) for group, found in groups.items()}


def rows_for(tensor: Tensor, stored: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the stored values of the part of a tensor that this rank holds."""
    if not isinstance(tensor, DTensor):
        return stored[name]
    block = block_of(tensor, dist.get_rank())
    if isinstance(stored, StoredTensors):
        rows = stored.rows(name, *block.rows)
        return rows if block.columns is None else rows[:, slice(*block.columns)]
    return block.of(stored[name])


def shape_of(stored: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Return the shape of a stored tensor, without reading it where that is possible."""
    return stored.shape(name) if isinstance(stored, StoredTensors) else tuple(stored[name].shape)
