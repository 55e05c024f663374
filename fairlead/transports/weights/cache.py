"""The cache of a replica: the versions that it has fetched and verified, and the one that it is fetching.

Filled by the replica's weight source, read by the sender that relays to other replicas. The folder has the
layout of the origin's store; after a restart everything in it is verified again before it is used.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from fairlead.errors import ConfigError, InvalidInput, NotFound
from fairlead.transports.weights import disk
from fairlead.transports.weights.base import Manifest, OpenShard
from fairlead.transports.weights.partial import PartialVersion
from fairlead.types import WeightVersion

_PARTIAL = ".partial-"
_LOCK = ".lock"

KEEP_VERSIONS = 2
"""The version in use and the one that is being fetched; the cache's volume has space for two."""


class WeightCache:
    """A folder with the newest complete versions and the one that is being fetched."""

    def __init__(self, root: Path, *, keep: int = KEEP_VERSIONS) -> None:
        """`keep`: how many complete versions the folder may hold."""
        self.root = root
        self._keep = keep
        self._verified: dict[WeightVersion, Manifest] = {}
        self._partial: PartialVersion | None = None
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Lock the folder for this process.

        Raises:
            ConfigError: if another process has locked it.
            OutOfSpace, ReadOnlyDisk: if the folder cannot be written.
        """
        with disk.named_disk_errors(self.root, "the cache of weights"):
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = (self.root / _LOCK).open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise ConfigError(
                "weights.cache",
                got=f"{self.root}, which another process uses",
                allowed="a folder that no other process uses",
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unlock the folder; its content stays for the next process."""
        if self._lock is not None:
            self._lock.close()

    @property
    def versions(self) -> tuple[WeightVersion, ...]:
        """The complete versions that this process has verified, oldest first."""
        return tuple(sorted(self._verified))

    def find(self, version: WeightVersion) -> Path | None:
        """Return the folder of a verified version, None if the cache does not have it."""
        return self.root / str(version) if version in self._verified else None

    def begin(self, manifest: Manifest) -> PartialVersion:
        """Prepare to fetch a version: delete old versions, and keep what an earlier attempt has fetched.

        Raises:
            OutOfSpace, ReadOnlyDisk: if the version does not fit, or the folder cannot be written.
        """
        version = manifest.version
        what = f"weights {version}"
        with disk.named_disk_errors(self.root, what):
            self.root.mkdir(parents=True, exist_ok=True)
            folder = self.root / f"{_PARTIAL}{version}"
            whole = self.root / str(version)
            # A version of an earlier process may have been damaged since: it is verified as a partial one.
            if whole.is_dir() and not folder.exists():
                whole.rename(folder)
            self._evict(keep=self._keep - 1, spare=folder)
        partial = PartialVersion(folder, manifest)
        try:
            disk.check_space(self.root, partial.missing_bytes, what)
        except BaseException:
            partial.close()
            raise
        self._partial = partial
        return partial

    def finish(self, partial: PartialVersion) -> Path:
        """Add a completely fetched version to the cache and return its folder.

        Raises:
            CorruptWeights: if its shards contain other tensors than its manifest lists.
        """
        partial.finish()
        version = partial.manifest.version
        folder = self.root / str(version)
        with disk.named_disk_errors(self.root, f"weights {version}"):
            partial.folder.rename(folder)
        self._verified[version] = partial.manifest
        return folder

    def end(self, partial: PartialVersion) -> None:
        """Close a version that is no longer being fetched, complete or not."""
        partial.close()
        if self._partial is partial:
            self._partial = None

    def open(self, version: WeightVersion, shard: str) -> OpenShard:
        """Open a shard of a verified version, or of the one that is being fetched.

        Raises:
            NotFound: if the cache does not have the version, or the version has no such shard.
        """
        whole, partial = self.root / str(version), self._partial
        if version in self._verified:
            manifest, folders = self._verified[version], [whole]
        elif partial is not None and partial.manifest.version == version:
            # The folder may be renamed at any moment, once the version is complete.
            manifest, folders = partial.manifest, [partial.folder, whole]
        else:
            held = ", ".join(map(str, self.versions)) or "none"
            raise NotFound(f"weights {version} are not in this cache; versions in it: {held}")
        entry = next((entry for entry in manifest.shards if entry.name == shard), None)
        if entry is None:
            raise NotFound(f"weights {version} have no shard {shard[:80]!r}")
        for folder in folders:
            with suppress(FileNotFoundError):
                descriptor = os.open(folder / shard, os.O_RDONLY | os.O_CLOEXEC)
                verified = partial.shards[shard].verified if partial and folder == partial.folder else None
                return OpenShard(descriptor, entry.size_bytes, verified)
        raise NotFound(f"weights {version} are no longer in this cache")

    def _evict(self, *, keep: int, spare: Path) -> None:
        """Delete all but the newest versions, and the remains of other attempts than `spare`."""
        whole: list[WeightVersion] = []
        for path in self.root.iterdir():
            if path.name.startswith(_PARTIAL) and path != spare:
                shutil.rmtree(path, ignore_errors=True)
            with suppress(InvalidInput):
                whole.append(WeightVersion.parse(path.name))
        for version in sorted(whole)[: max(0, len(whole) - keep)]:
            self._verified.pop(version, None)
            shutil.rmtree(self.root / str(version), ignore_errors=True)
