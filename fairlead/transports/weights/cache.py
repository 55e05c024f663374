"""The versions that a replica has fetched, in a folder of its own: few, verified, and open to its peers.

Between the store that fetches and the sender that relays. Laid out as the origin's store; nothing in it is
trusted over a restart before it is verified again.
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
from fairlead.transports.weights.base import Manifest
from fairlead.transports.weights.partial import Partial
from fairlead.transports.weights.shelf import OpenShard
from fairlead.types import WeightVersion

_PARTIAL = ".partial-"
_LOCK = ".lock"


KEEP_VERSIONS = 2
"""The version in use and the one that is being fetched; the cache's volume has room for two."""


class WeightCache:
    """A folder with at most `keep` whole versions and one that is coming in."""

    def __init__(self, root: Path, *, keep: int = KEEP_VERSIONS) -> None:
        self.root = root
        self._keep = keep
        self._verified: dict[WeightVersion, Manifest] = {}
        self._partial: Partial | None = None
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Takes the folder for this process.

        Raises:
            ConfigError: if another process has it.
            OutOfSpace, ReadOnlyDisk: if it cannot be written into.
        """
        with disk.faults_named(self.root, "the cache of weights"):
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = (self.root / _LOCK).open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise ConfigError(
                "weights.cache", got=f"{self.root}, which another process uses", allowed="a folder of its own"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the folder, with what is in it, to the next process."""
        if self._lock is not None:
            self._lock.close()

    @property
    def versions(self) -> tuple[WeightVersion, ...]:
        """Those that are whole and were verified by this process, oldest first."""
        return tuple(sorted(self._verified))

    def find(self, version: WeightVersion) -> Path | None:
        """The folder of a verified version."""
        return self.root / str(version) if version in self._verified else None

    def begin(self, manifest: Manifest) -> Partial:
        """Makes room and a place for a version; what is left of an earlier attempt is verified and kept.

        Raises:
            OutOfSpace, ReadOnlyDisk: if there is no place for it.
        """
        version = manifest.version
        what = f"weights {version}"
        with disk.faults_named(self.root, what):
            self.root.mkdir(parents=True, exist_ok=True)
            folder = self.root / f"{_PARTIAL}{version}"
            whole = self.root / str(version)
            # Of an earlier process: it may have been damaged since.
            if whole.is_dir() and not folder.exists():
                whole.rename(folder)
            self._evict(keep=self._keep - 1, but=folder)
        partial = Partial(folder, manifest)
        try:
            disk.check_room(self.root, partial.missing_bytes, what)
        except BaseException:
            partial.close()
            raise
        self._partial = partial
        return partial

    def finish(self, partial: Partial) -> Path:
        """A version that is complete becomes one of the cache's.

        Raises:
            CorruptWeights: if its shards hold other tensors than its manifest says.
        """
        partial.finish()
        version = partial.manifest.version
        folder = self.root / str(version)
        with disk.faults_named(self.root, f"weights {version}"):
            partial.folder.rename(folder)
        self._verified[version] = partial.manifest
        return folder

    def end(self, partial: Partial) -> None:
        """Nobody writes to it any more, whether it is complete or not."""
        partial.close()
        if self._partial is partial:
            self._partial = None

    def open(self, version: WeightVersion, shard: str) -> OpenShard:
        """A shard for a peer: of a verified version, or of the one that is coming in.

        Raises:
            NotFound: if the version is neither, or has no such shard.
        """
        whole, partial = self.root / str(version), self._partial
        if version in self._verified:
            manifest, folders = self._verified[version], [whole]
        elif partial is not None and partial.manifest.version == version:
            # Complete, it is renamed at any moment.
            manifest, folders = partial.manifest, [partial.folder, whole]
        else:
            held = ", ".join(map(str, self.versions)) or "none"
            raise NotFound(f"weights {version} are not here; those that are: {held}")
        entry = next((entry for entry in manifest.shards if entry.name == shard), None)
        if entry is None:
            raise NotFound(f"weights {version} have no shard {shard!r}")
        for folder in folders:
            with suppress(FileNotFoundError):
                descriptor = os.open(folder / shard, os.O_RDONLY | os.O_CLOEXEC)
                progress = partial.shards[shard].progress if partial and folder == partial.folder else None
                return OpenShard(descriptor, entry.size_bytes, progress)
        raise NotFound(f"weights {version} are no longer here")

    def _evict(self, *, keep: int, but: Path) -> None:
        """Deletes all but the newest versions, and what is left of other attempts."""
        whole: list[WeightVersion] = []
        for path in self.root.iterdir():
            if path.name.startswith(_PARTIAL) and path != but:
                shutil.rmtree(path, ignore_errors=True)
            with suppress(InvalidInput):
                whole.append(WeightVersion.parse(path.name))
        for version in sorted(whole)[: max(0, len(whole) - keep)]:
            self._verified.pop(version, None)
            shutil.rmtree(self.root / str(version), ignore_errors=True)
