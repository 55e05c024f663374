"""The store of policy weights between the trainer, which publishes, and the replicas, which fetch.

A version is immutable: safetensors shards and a manifest with the SHA-256 of each. The store moves files and
knows no torch. Validity follows the lineage in the newest manifest: (j, u) is valid if and only if u is not
above the update from which any later incarnation resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from fairlead.types import WeightVersion

PieceHash = Literal["sha256", "blake3"]
"""Functions that pieces are hashed with."""


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One incarnation of the trainer and where it began."""

    incarnation: int
    """The incarnation."""
    resumed_from: int
    """Update of the checkpoint that it resumed; 0 for a fresh start."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor of a version."""

    name: str
    """Its name in the state dict."""
    dtype: str
    """safetensors' name of the type, such as `F32`."""
    shape: tuple[int, ...]
    """Its shape."""
    shard: str
    """File that holds it."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of a version."""

    name: str
    """File name."""
    size_bytes: int
    """Its size."""
    sha256: str
    """Its checksum, hexadecimal."""
    piece_bytes: int = 0
    """Length of each of its pieces but the last; 0 in manifests that know none."""
    pieces: tuple[str, ...] = ()
    """Digest of each, hexadecimal: what comes over the wire is verified, and passed on, piece by piece."""
    piece_hash: PieceHash = "sha256"
    """How they are hashed; manifests of the first schema have SHA-256."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a version needs that is only what was added to a base model."""

    base_fingerprint: str
    """SHA-256 over the base's weights, as `fairlead.nn.adapters.fingerprint` makes it."""
    config: Mapping[str, object]
    """The content of peft's `adapter_config.json`; it names the base model."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a version consists of."""

    version: WeightVersion
    """The version."""
    parent: WeightVersion | None
    """The version that it was trained from."""
    lineage: tuple[Ancestor, ...]
    """Every incarnation up to this one, in order."""
    tensors: tuple[TensorEntry, ...]
    """Every tensor."""
    shards: tuple[Shard, ...]
    """Every file."""
    adapter: Adapter | None = None
    """The version holds an adapter only; None if it holds the whole model."""


def is_valid(version: WeightVersion, lineage: Sequence[Ancestor]) -> bool:
    """Whether a version belongs to the lineage: no later incarnation resumed from before it."""
    known = any(ancestor.incarnation == version.incarnation for ancestor in lineage)
    return known and all(
        version.update <= ancestor.resumed_from
        for ancestor in lineage
        if ancestor.incarnation > version.incarnation
    )


class WeightSource(Protocol):
    """What a replica follows: the newest version, fetched and verified, without holding up its event loop."""

    async def latest(self) -> Manifest | None:
        """Manifest of the newest valid version, None if there is none. Cheap: meant to be polled."""
        ...

    async def fetch(self, manifest: Manifest) -> Path:
        """Folder with the verified files of a version.

        Raises:
            NotFound: if the version has gone meanwhile: another is the newest.
            CorruptWeights: if its files do not match the manifest; the message names one.
            OutOfSpace, ReadOnlyDisk: if there is no place to put it.
            Unavailable: if no source of its bytes answers.
        """
        ...


class WeightStore(Protocol):
    """A store of versions."""

    def publish(
        self,
        version: WeightVersion,
        *,
        parent: WeightVersion | None,
        lineage: Sequence[Ancestor],
        adapter: Adapter | None = None,
    ) -> AbstractContextManager[Path]:
        """A folder to write `*.safetensors` into; when the block ends without error the version is published.

        With `adapter`, what is written are an adapter's tensors, by the names of peft's files.

        Publishing is atomic and durable: manifest and shards are synced, then renamed, then the hint `latest`
        moves. A version that exists already is left as it is.
        """
        ...

    def latest(self) -> Manifest | None:
        """Manifest of the newest valid version, None if there is none. Cheap: meant to be polled."""
        ...

    def versions(self) -> Sequence[WeightVersion]:
        """Every complete version in the store, oldest first, valid or not."""
        ...

    def fetch(self, version: WeightVersion) -> Path:
        """Folder with the verified files of a version.

        Raises:
            CorruptWeights: if a file is missing, short, or its SHA-256 differs; the message names it.
        """
        ...

    def prune(self, *, keep: int) -> None:
        """Deletes all but the newest `keep` versions."""
        ...
