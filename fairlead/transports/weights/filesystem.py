"""The weight store: versions in a folder that the trainer writes, and replicas on the same volume read.

Each version is a folder `<incarnation>-<update>/`, written under another name and renamed when complete. The
file `latest` names the newest version; it is a hint that may be missing, stale or corrupt: only the folders
count. Knows nothing about the meaning of tensors.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fairlead.errors import CorruptWeights, Fenced, InvalidInput, NotFound
from fairlead.transports.weights import disk
from fairlead.transports.weights import manifest as manifests
from fairlead.transports.weights.base import Adapter, Ancestor, Manifest, OpenShard, Probe, Shard
from fairlead.types import WeightVersion

logger = logging.getLogger(__name__)

_HINT = "latest"
_STAGING = ".staging-"
_TRASH = ".trash-"


class FilesystemWeightSource:
    """The WeightSource of a replica on the same volume: it reads versions where the trainer wrote them."""

    def __init__(self, store: FilesystemWeightStore) -> None:
        self._store = store

    async def latest(self) -> Manifest | None:
        """See `WeightSource.latest`."""
        return await asyncio.to_thread(self._store.latest)

    async def fetch(self, manifest: Manifest) -> Path:
        """See `WeightSource.fetch`. The folder is the version's own folder in the store."""
        version = manifest.version
        try:
            return await asyncio.to_thread(self._store.fetch, version)
        except CorruptWeights as error:
            if version in await asyncio.to_thread(self._store.versions):
                raise
            raise NotFound(f"weights {version} were deleted while they were read") from error


class FilesystemWeightStore:
    """The versions in a folder. Any number of readers; writers are fenced by their incarnation."""

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
        described: Mapping[str, Shard] = {},
        probe: Probe | None = None,
    ) -> Iterator[Path]:
        """Yield a folder for `*.safetensors` files; publish the version when the block ends without error.

        Publishing is atomic and durable: shards and manifest are synced, the folder is renamed, then the hint
        `latest` is updated. If the version exists already, it is left unchanged. With `adapter`, the files
        contain only an adapter's tensors, under the names that peft uses. `probe` is what the weights
        compute. `described` may be filled within the block with shards that other processes have written
        and hashed.

        Raises:
            Fenced: if the store has a version of a higher incarnation.
            InvalidInput: if the files are not a set of shards, or the version is not in the lineage.
            OutOfSpace, ReadOnlyDisk: if the folder cannot be written; earlier versions are unaffected.
        """
        with (
            disk.named_disk_errors(self.root, f"weights {version}"),
            self._publish(
                version, parent=parent, lineage=lineage, adapter=adapter, probe=probe, described=described
            ) as staging,
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
        described: Mapping[str, Shard],
        probe: Probe | None,
    ) -> Iterator[Path]:
        self._check_fence(version)
        self._make_root()
        self._clean(version.incarnation)
        staging = self.root / f"{_STAGING}{version}-{uuid.uuid4().hex}"
        staging.mkdir()
        self._writing.add(staging)
        try:
            yield staging
            manifest = manifests.build(
                staging,
                version,
                parent=parent,
                lineage=lineage,
                adapter=adapter,
                probe=probe,
                described=described,
            )
            (staging / manifests.FILE_NAME).write_bytes(manifests.encode(manifest))
            for path in staging.iterdir():
                disk.sync(path)
            disk.sync(staging)
            self._check_fence(version)
            self._place(staging, version)
        finally:
            self._writing.discard(staging)
            shutil.rmtree(staging, ignore_errors=True)

    def latest(self) -> Manifest | None:
        """Return the manifest of the newest valid version, None if there is none. Cheap enough to poll.

        Only the highest incarnation counts: a lower one that still writes was replaced. Costs one listing of
        a small folder; each manifest is read once, because versions never change.

        Raises:
            CorruptWeights: if no manifest of the highest incarnation can be read.
        """
        known = set(self.versions())
        # A network file system may list a new folder late although it can be opened by its name.
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
                    logger.warning("skipping damaged weights %s: %s", version, error)
        if failure is None or not self._is_complete(newest):  # deleted between listing and reading
            return None
        raise failure

    def versions(self) -> Sequence[WeightVersion]:
        """Return every complete version in the store, oldest first, valid or not."""
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
        """Verify a version and return its folder.

        Raises:
            CorruptWeights: if a file is missing, short, or has another SHA-256; the message names the file.
        """
        folder = self._folder(version)
        try:
            manifests.verify(folder, manifests.read(folder, version))
        except OSError as error:
            raise CorruptWeights(f"{folder} cannot be read: {error}") from error
        return folder

    def open(self, version: WeightVersion, shard: str) -> OpenShard:
        """Open a shard; see `ShardStore.open`.

        Raises:
            NotFound: if the store does not have the version, or the version has no such shard.
        """
        path = self._folder(version) / shard
        try:
            known = {entry.name for entry in self._manifest(version).shards}
            if shard not in known:
                raise NotFound(f"weights {version} have no shard {shard[:80]!r}")
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (CorruptWeights, FileNotFoundError) as error:
            held = ", ".join(map(str, self.versions())) or "none"
            raise NotFound(f"weights {version} are not in the store; versions in it: {held}") from error
        return OpenShard(descriptor, os.fstat(descriptor).st_size)

    def prune(self, *, keep: int) -> None:
        """Delete all but the newest `keep` versions, and never the one that `latest` names."""
        if keep < 1:
            raise InvalidInput("keep", got=keep, allowed="1 or more")
        hint = self._hint()
        for version in self.versions()[:-keep]:
            if version == hint:
                continue
            # Renamed first, so that a reader never sees part of a version.
            trash = self.root / f"{_TRASH}{version}-{uuid.uuid4().hex}"
            with suppress(FileNotFoundError):
                self._folder(version).rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def _place(self, staging: Path, version: WeightVersion) -> None:
        target = self._folder(version)
        try:
            staging.rename(target)
            disk.sync(self.root)
        except OSError:
            if not self._is_complete(version):
                raise
            logger.info("weights %s exist already and are left unchanged", version)
        hint = self._hint()
        if hint is None or hint < version:
            new_hint = self.root / f".{_HINT}-{uuid.uuid4().hex}"
            new_hint.write_text(f"{version}\n", encoding="ascii")
            disk.sync(new_hint)
            new_hint.replace(self.root / _HINT)
            disk.sync(self.root)

    def _hint(self) -> WeightVersion | None:
        try:
            version = WeightVersion.parse((self.root / _HINT).read_text(encoding="ascii").strip())
        except (OSError, ValueError, InvalidInput):
            return None
        return version if self._is_complete(version) else None

    def _check_fence(self, version: WeightVersion) -> None:
        known = self.versions()
        if known and known[-1].incarnation > version.incarnation:
            raise Fenced(f"cannot publish {version}: {self.root} has {known[-1]} of a newer trainer")

    def _clean(self, incarnation: int) -> None:
        """Delete the remains of crashed writers, but nothing that a newer trainer may be writing now."""
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
            disk.sync(self.root.parent)

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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
