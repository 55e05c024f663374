"""The tensors of a checkpoint in slices: each rank writes the part that it holds, any number of ranks reads.

A file `rank-00000.safetensors` has the slices of one rank, named `<group>/<tensor>`; the manifest says which
rows, and with tensor parallelism which columns, are where. Without pickle, and without moving a tensor
between ranks.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_POLL_SECONDS = 0.2


def write(folder: Path, tensors: Groups, group: Group) -> dict[str, object]:
    """Write the slices of this rank; return on rank 0 the entries `files`, `groups` and `tensors` of the
    manifest.

    Tensors that are not divided are written by rank 0. Every file is synced when this returns on rank 0.
    """
    own = _OwnSlices(tensors, group)
    return own.listed(own.write(folder, group.progress))


class Writing:
    """Slices of this rank that a thread writes while the tensors change. All ranks begin and finish it."""

    def __init__(self, folder: Path, tensors: Groups, group: Group) -> None:
        """Copy the slices to the memory of the host, and begin to write the copy into a folder."""
        self._group = group
        group.progress("copying tensors")
        self._own = _OwnSlices(tensors, group)
        self._own.copy()
        self._doing = ""
        self._written: dict[str, object] = {}
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._write, args=(folder,), name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> dict[str, object]:
        """Wait until every rank has written and synced its file; return what `write` returns.

        Raises:
            OSError: if this rank cannot write.
        """
        reported = ""
        while self._thread.is_alive():
            self._thread.join(_POLL_SECONDS)
            if self._doing != reported:
                reported = self._doing
                self._group.progress(reported)
        if self._error is not None:
            raise self._error
        return self._own.listed(self._written)

    def _write(self, folder: Path) -> None:
        try:
            self._written = self._own.write(folder, self._report)
        except Exception as error:  # noqa: BLE001  # raised by `finish`
            self._error = error

    def _report(self, doing: str) -> None:
        self._doing = doing


class _OwnSlices:
    """What one rank writes into a checkpoint."""

    def __init__(self, tensors: Groups, group: Group) -> None:
        self._group = group
        self._groups = list(tensors)
        self._shapes: dict[str, list[int]] = {}
        self._slices: dict[str, Tensor] = {}
        self._places: dict[str, dict[str, object]] = {}
        for name, tensor in _joined(tensors):
            self._shapes[name] = list(tensor.shape)
            if is_divided(tensor) and not is_copy(tensor, group.rank):
                block = block_of(tensor, group.rank)
                self._slices[name] = local(tensor).contiguous()
                columns = {"columns": block.columns} if block.columns is not None else {}
                self._places[name] = {"rows": block.rows, **columns}
            elif not is_divided(tensor) and group.rank == 0:
                self._slices[name] = tensor
                self._places[name] = {"rows": None}

    def copy(self) -> None:
        """Replace the tensors by copies in the memory of the host, pinned for those on a GPU."""
        for name, tensor in self._slices.items():
            copied = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._slices[name] = copied.copy_(tensor.detach(), non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def write(self, folder: Path, report: Callable[[str], None]) -> dict[str, object]:
        """Write and sync the file of this rank; return its entry for `listed`."""
        file = f"rank-{self._group.rank:05d}{SUFFIX}"
        digest = hashlib.sha256()
        target = TensorFile(
            folder / file, {name: Shape.of(tensor) for name, tensor in self._slices.items()}, digest=digest
        )
        try:
            for name, tensor in self._slices.items():
                report(f"writing {name} to {file}")
                target.add(name, tensor)
            target.close()
        finally:
            target.abandon()
        sync(folder / file)
        return {"file": file, "sha256": digest.hexdigest(), "places": self._places}

    def listed(self, own: Mapping[str, object]) -> dict[str, object]:
        """Return, on rank 0, the entries of the manifest for the files of all ranks."""
        written = [json.loads(one) for one in self._group.gather(json.dumps(own).encode())]
        if not self._group.is_first:
            return {}
        entries = {
            name: {
                "shape": shape,
                "slices": [
                    {"file": one["file"], **one["places"][name]}
                    for one in sorted(written, key=lambda one: _order(one["places"].get(name, {})))
                    if name in one["places"]
                ],
            }
            for name, shape in self._shapes.items()
        }
        return {
            "files": {one["file"]: one["sha256"] for one in written},
            "groups": self._groups,
            "tensors": entries,
        }


def _joined(tensors: Groups) -> Iterator[tuple[str, Tensor]]:
    for group, named in tensors.items():
        for name, tensor in named.items():
            yield f"{group}/{name}", tensor


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
