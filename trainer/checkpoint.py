"""Checkpoints: the only authority on what was trained. Atomic, checksummed, without pickle.

A checkpoint is a folder `<incarnation>-<update>` of safetensors files, `state.json`, and `manifest.json` with
the SHA-256 of each. One rank writes a file for each group of tensors; several write a file each, and the
manifest says which rows of a tensor are where (trainer/distributed/slices.py). The claims of incarnations are
in the same parent folder (trainer/lineage.py). Does not know what the tensors are.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from fairlead.errors import CorruptCheckpoint, Fenced, InvalidInput
from fairlead.transports.weights.base import Ancestor, is_valid
from fairlead.transports.weights.manifest import sha256
from fairlead.types import WeightVersion
from trainer import durable
from trainer import lineage as claims
from trainer.distributed import slices
from trainer.distributed.group import Group

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_STATE = "state.json"
_SUFFIX = ".safetensors"
_SCHEMA = 3
"""Schema 1 has no key `schema`, and whole tensors in a file for each group. Schema 3 has slices of columns,
which only tensor parallelism writes; all others are schema 2."""
_LEFTOVER = re.compile(r"\.(\d+)-\d+\.\w+")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint, read and verified."""

    version: WeightVersion
    """The incarnation that wrote it, and the updates done before."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """Tensors by the name of their file, then by their own name."""
    state: Mapping[str, object]
    """Everything else, as JSON values."""


class PendingCheckpoint:
    """A checkpoint that is being written; it does not exist before `commit`."""

    def __init__(
        self,
        version: WeightVersion,
        folder: Path,
        state: str,
        writing: slices.Writing,
        opened: contextlib.ExitStack,
    ) -> None:
        """`opened` is the context of the folder, and `state` is JSON."""
        self.version = version
        self._folder = folder
        self._state = state
        self._writing = writing
        self._opened = opened

    def commit(self) -> None:
        """Wait until all ranks have written their files, and rename the folder.

        Raises:
            Fenced: if a newer incarnation was claimed.
            OSError: if the disk is full.
        """
        with self._opened:
            _seal(self._folder, _with_schema(self._writing.finish()), self._state)


def _with_schema(written: Mapping[str, Any]) -> Mapping[str, object]:
    """Return the manifest of slices with the oldest schema that has them."""
    return {"schema": 3 if slices.has_columns(written) else 2, **written}


def _seal(folder: Path, manifest: Mapping[str, object], state: str) -> None:
    """Write the state, and the manifest with its digest, beside the files of tensors."""
    (folder / _STATE).write_text(state + "\n", encoding="utf-8")
    sealed: dict[str, Any] = dict(manifest)
    sealed["files"] = {**sealed["files"], _STATE: sha256(folder / _STATE)}
    durable.write_json(folder / _MANIFEST, sealed, durable=False)


class CheckpointStore:
    """The checkpoints in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._damaged: set[WeightVersion] = set()

    def versions(self) -> list[WeightVersion]:
        """Return every checkpoint in the folder, oldest first, valid or not."""
        found = []
        for path in self.root.iterdir() if self.root.is_dir() else ():
            try:
                version = WeightVersion.parse(path.name)
            except InvalidInput:
                continue
            if path.is_dir():
                found.append(version)
        return sorted(found)

    def save(
        self,
        version: WeightVersion,
        *,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, object],
        group: Group | None = None,
        announce: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """Write a checkpoint to a temporary folder, sync it, and rename it; with several ranks, on rank 0.

        Args:
            version: the checkpoint.
            tensors: by the name of their file, then by their own name; of several ranks, this one's part.
            state: everything else, as JSON values.
            group: the ranks, each of which writes its slices; None: only this process, which writes whole
                tensors.
            announce: makes the other ranks write theirs into the folder by `slices.write`.

        Raises:
            Fenced: if a newer incarnation was claimed.
        """

        def whole(folder: Path) -> Mapping[str, object]:
            for name, named in tensors.items():
                contiguous = {key: value.contiguous() for key, value in named.items()}
                save_file(contiguous, folder / f"{name}{_SUFFIX}")
            return {"files": {file.name: sha256(file) for file in sorted(folder.iterdir())}}

        def divided(folder: Path) -> Mapping[str, object]:
            announce(folder)
            assert group is not None
            return _with_schema(slices.write(folder, tensors, group))

        write = whole if group is None or group.size == 1 else divided
        with self._new_folder(version) as folder:
            _seal(folder, write(folder), durable.dumps(state, indent=1))

    def begin(
        self,
        version: WeightVersion,
        *,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, object],
        group: Group,
        announce: Callable[[Path], None],
    ) -> PendingCheckpoint:
        """Copy what a checkpoint holds, and write the copy while the tensors change; on rank 0 of several.

        Args:
            version: the checkpoint.
            tensors: this rank's part, by the name of their file, then by their own name.
            state: everything else, as JSON values.
            group: the ranks.
            announce: makes the other ranks begin a `slices.Writing` into the folder.

        Raises:
            Fenced: if a newer incarnation was claimed.
        """
        opened = contextlib.ExitStack()
        with opened:
            folder = opened.enter_context(self._new_folder(version))
            announce(folder)
            writing = slices.Writing(folder, tensors, group)
            return PendingCheckpoint(
                version, folder, durable.dumps(state, indent=1), writing, opened.pop_all()
            )

    @contextlib.contextmanager
    def _new_folder(self, version: WeightVersion) -> Iterator[Path]:
        """Yield a folder that becomes the checkpoint; check the fence at the beginning and at the end."""
        self._check_fence(version.incarnation)
        with durable.new_folder(self.root / str(version)) as folder:
            yield folder
            self._check_fence(version.incarnation)
        self._damaged.discard(version)

    def load_newest(self, lineage: Sequence[Ancestor]) -> Checkpoint | None:
        """Return the undamaged checkpoint of the lineage with the most updates; None without one.

        A damaged checkpoint is logged, and the one before it is used.
        """
        while True:
            candidates = self._candidates(lineage)
            for version in candidates:
                if version in self._damaged:
                    continue
                try:
                    return self.load(version)
                except CorruptCheckpoint as error:
                    self._damaged.add(version)
                    logger.error("checkpoint %s is damaged and is skipped: %s", version, error)
            # An older trainer that still runs may have replaced one meanwhile.
            if self._candidates(lineage) == candidates:
                return None

    def load(self, version: WeightVersion, *, verify: bool = True) -> Checkpoint:
        """Open one checkpoint; its tensors are read when they are asked for.

        Args:
            version: the checkpoint.
            verify: check every file now, and not only those that are read when they are.

        Raises:
            CorruptCheckpoint: if a file is missing or its SHA-256 differs; the message names it.
        """
        folder = self.root / str(version)
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            if manifest.get("schema", 1) not in range(1, _SCHEMA + 1):
                raise ValueError(f"schema {manifest['schema']}; this version reads schemas 1 to {_SCHEMA}")
            files = slices.StoredFiles(folder, manifest["files"])
            if verify:
                files.verify()
            tensors = slices.open_groups(files, manifest)
            state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CorruptCheckpoint(f"{folder}: {type(error).__name__}: {error}") from error
        return Checkpoint(version=version, tensors=tensors, state=state)

    def prune(
        self, *, keep: int, lineage: Sequence[Ancestor], protected: Collection[WeightVersion] = ()
    ) -> None:
        """Delete all but the newest `keep` checkpoints that are valid and not known to be damaged.

        Checkpoints in `protected` stay too, and those of a newer incarnation, which may have begun after the
        fence was checked.

        Raises:
            Fenced: if a newer incarnation was claimed, which may be reading what this one would delete.
        """
        incarnation = lineage[-1].incarnation
        self._check_fence(incarnation)
        good = [version for version in self._candidates(lineage) if version not in self._damaged]
        for version in set(self.versions()) - set(good[:keep]) - set(protected):
            if version.incarnation <= incarnation:
                self._delete(version)
        for leftover in self.root.glob(".*-*.*"):  # left by a crash
            owner = _LEFTOVER.fullmatch(leftover.name)
            if owner and int(owner[1]) <= incarnation:
                shutil.rmtree(leftover, ignore_errors=True)

    def forget(self) -> None:
        """Delete every checkpoint; the claims stay, so that the next start is a newer incarnation."""
        for version in self.versions():
            self._delete(version)

    def _delete(self, version: WeightVersion) -> None:
        """Rename a checkpoint, and then delete it: a backup that copies it never sees a part of it."""
        deleted = self.root / f".{version}.deleted"
        shutil.rmtree(deleted, ignore_errors=True)  # left by a crash
        (self.root / str(version)).rename(deleted)
        shutil.rmtree(deleted, ignore_errors=True)

    def _check_fence(self, incarnation: int) -> None:
        newest = max(claims.claimed(self.root), default=0)
        if newest > incarnation:
            raise Fenced(f"incarnation {newest} of the trainer has taken over from {incarnation}")

    def _candidates(self, lineage: Sequence[Ancestor]) -> list[WeightVersion]:
        valid = [version for version in self.versions() if is_valid(version, lineage)]
        return sorted(valid, key=lambda version: (version.update, version.incarnation), reverse=True)
