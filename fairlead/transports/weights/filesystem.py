"""The weight store in a folder that trainer and replicas both see; the contract stands in base.py.

`<incarnation>-<update>/` per version, written aside and renamed into place, and a file `latest` that names
the newest. The file is a hint: what counts is the folders, so it may be missing, stale or garbage. Nothing
here knows what a tensor is for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fairlead.errors import CorruptWeights, Fenced, InvalidInput, NotFound
from fairlead.transports.weights import disk
from fairlead.transports.weights import manifest as manifests
from fairlead.transports.weights.base import Adapter, Ancestor, Manifest
from fairlead.transports.weights.shelf import OpenShard
from fairlead.types import WeightVersion

logger = logging.getLogger(__name__)

_HINT = "latest"
_STAGING = ".staging-"
_TRASH = ".trash-"


class FilesystemWeightStore:
    """Versions in a folder. Any number of readers; writers are fenced by their incarnation."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._manifests: dict[WeightVersion, Manifest] = {}
        self._writing: set[Path] = set()
        self._damaged: set[WeightVersion] = set()

    @contextmanager
    def publish(
        self,
        version: WeightVersion,
        *,
        parent: WeightVersion | None,
        lineage: Sequence[Ancestor],
        adapter: Adapter | None = None,
    ) -> Iterator[Path]:
        """A folder to write `*.safetensors` into; published when the block ends without error.

        Raises:
            Fenced: if the store holds a version of a higher incarnation.
            InvalidInput: if what was written is no set of shards, or the version is not in the lineage.
            OutOfSpace, ReadOnlyDisk: if it cannot be written; the versions before it stay.
        """
        with (
            disk.faults_named(self.root, f"weights {version}"),
            self._publish(version, parent=parent, lineage=lineage, adapter=adapter) as staging,
        ):
            yield staging

    @contextmanager
    def _publish(
        self,
        version: WeightVersion,
        *,
        parent: WeightVersion | None,
        lineage: Sequence[Ancestor],
        adapter: Adapter | None,
    ) -> Iterator[Path]:
        self._check_fence(version)
        self._make_root()
        self._clean(version.incarnation)
        staging = self.root / f"{_STAGING}{version}-{uuid.uuid4().hex}"
        staging.mkdir()
        self._writing.add(staging)
        try:
            yield staging
            manifest = manifests.build(staging, version, parent=parent, lineage=lineage, adapter=adapter)
            (staging / manifests.FILE_NAME).write_bytes(manifests.encode(manifest))
            for path in staging.iterdir():
                _sync(path)
            _sync(staging)
            self._check_fence(version)
            self._place(staging, version)
        finally:
            self._writing.discard(staging)
            shutil.rmtree(staging, ignore_errors=True)

    def latest(self) -> Manifest | None:
        """Manifest of the newest valid version, None if there is none.

        Only the highest incarnation counts: a lower one that still writes is no longer the run's. Costs one
        listing of a small folder; manifests are read once, since versions never change.

        Raises:
            CorruptWeights: if no manifest of the highest incarnation can be read.
        """
        known = set(self.versions())
        # A network file system may show a new folder late in listings although its name can be opened.
        hint = self._hint()
        if hint is not None and self._is_complete(hint):
            known.add(hint)
        if not known:
            self._manifests = {}
            return None
        newest = max(known)
        failure: CorruptWeights | None = None
        for version in sorted(known, reverse=True):
            if version.incarnation != newest.incarnation:
                break
            try:
                return self._manifest(version)
            except CorruptWeights as error:
                failure = failure or error
                if version not in self._damaged:
                    self._damaged.add(version)
                    logger.warning("weights %s are damaged and are skipped: %s", version, error)
        if failure is None or not self._is_complete(newest):  # pruned between listing and reading
            return None
        raise failure

    def versions(self) -> Sequence[WeightVersion]:
        """Every complete version in the store, oldest first, valid or not."""
        found = []
        try:
            names = os.listdir(self.root)
        except FileNotFoundError:
            return ()
        for name in names:
            with suppress(InvalidInput):
                version = WeightVersion.parse(name)
                if str(version) == name and self._is_complete(version):
                    found.append(version)
        return tuple(sorted(found))

    def fetch(self, version: WeightVersion) -> Path:
        """Folder with the verified files of a version.

        Raises:
            CorruptWeights: if a file is missing, short, or its SHA-256 differs; the message names it.
        """
        folder = self._folder(version)
        try:
            manifests.verify(folder, manifests.read(folder, version))
        except OSError as error:
            raise CorruptWeights(f"{folder} cannot be read: {error}") from error
        return folder

    def open(self, version: WeightVersion, shard: str) -> OpenShard:
        """A shard, for a sender.

        Raises:
            NotFound: if the version is not here, or has no such shard.
        """
        path = self._folder(version) / shard
        try:
            known = {entry.name for entry in self._manifest(version).shards}
            if shard not in known:
                raise NotFound(f"weights {version} have no shard {shard!r}")
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (CorruptWeights, FileNotFoundError) as error:
            held = ", ".join(map(str, self.versions())) or "none"
            raise NotFound(f"weights {version} are not here; those that are: {held}") from error
        return OpenShard(descriptor, os.fstat(descriptor).st_size)

    def prune(self, *, keep: int) -> None:
        """Deletes all but the newest `keep` versions, never the one that `latest` names."""
        if keep < 1:
            raise InvalidInput("keep", got=keep, allowed="1 or more")
        hint = self._hint()
        for version in self.versions()[:-keep]:
            if version == hint:
                continue
            # Renamed first: a reader sees a version whole or not at all.
            trash = self.root / f"{_TRASH}{version}-{uuid.uuid4().hex}"
            with suppress(FileNotFoundError):
                self._folder(version).rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def _place(self, staging: Path, version: WeightVersion) -> None:
        target = self._folder(version)
        try:
            staging.rename(target)
            _sync(self.root)
        except OSError:
            if not self._is_complete(version):
                raise
            logger.info("weight version %s exists already and is left as it is", version)
        hint = self._hint()
        if hint is None or hint < version:
            aside = self.root / f".{_HINT}-{uuid.uuid4().hex}"
            aside.write_text(f"{version}\n", encoding="ascii")
            _sync(aside)
            aside.replace(self.root / _HINT)
            _sync(self.root)

    def _hint(self) -> WeightVersion | None:
        try:
            version = WeightVersion.parse((self.root / _HINT).read_text(encoding="ascii").strip())
        except (OSError, ValueError, InvalidInput):
            return None
        return version if self._is_complete(version) else None

    def _check_fence(self, version: WeightVersion) -> None:
        known = self.versions()
        if known and known[-1].incarnation > version.incarnation:
            raise Fenced(f"cannot publish {version}: {self.root} holds {known[-1]} of a newer trainer")

    def _clean(self, incarnation: int) -> None:
        """Removes what crashes left behind, but nothing of a newer trainer that may be writing now."""
        for path in self.root.iterdir():
            if path in self._writing:
                continue
            if path.name.startswith((_TRASH, f".{_HINT}-")):
                _remove(path)
            elif path.name.startswith(_STAGING):
                owner = path.name.removeprefix(_STAGING).split("-")[0]
                if not owner.isdigit() or int(owner) <= incarnation:
                    _remove(path)

    def _make_root(self) -> None:
        if not self.root.is_dir():
            self.root.mkdir(parents=True, exist_ok=True)
            _sync(self.root.parent)

    def _manifest(self, version: WeightVersion) -> Manifest:
        manifest = self._manifests.get(version)
        if manifest is None:
            manifest = manifests.read(self._folder(version), version)
            kept = {known: each for known, each in self._manifests.items() if self._is_complete(known)}
            self._manifests = kept | {version: manifest}
        return manifest

    def _is_complete(self, version: WeightVersion) -> bool:
        return (self._folder(version) / manifests.FILE_NAME).is_file()

    def _folder(self, version: WeightVersion) -> Path:
        return self.root / str(version)


class FilesystemWeightSource:
    """The store as a replica on the same volume follows it: its folder is read where it lies."""

    def __init__(self, store: FilesystemWeightStore) -> None:
        self._store = store

    async def latest(self) -> Manifest | None:
        """Manifest of the newest valid version; see WeightSource.latest."""
        return await asyncio.to_thread(self._store.latest)

    async def fetch(self, manifest: Manifest) -> Path:
        """The version's own folder, verified; see WeightSource.fetch."""
        version = manifest.version
        try:
            return await asyncio.to_thread(self._store.fetch, version)
        except CorruptWeights as error:
            if version in await asyncio.to_thread(self._store.versions):
                raise
            raise NotFound(f"weights {version} were pruned while they were read") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
