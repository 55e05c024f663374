"""The parts of a weight version, and the interfaces for fetching versions and sending their bytes.

The trainer publishes versions, the replicas fetch them. A version is immutable: safetensors shards and a
manifest with the SHA-256 of each. Nothing here knows torch, a wire or a storage location.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from fairlead.types import WeightVersion

PieceHash = Literal["sha256", "blake3"]
"""Hash functions of pieces."""

LEASE_SECONDS = 5.0
"""A replica that has not been heard from for this time loses its place at a source, and is no longer a source
itself. Replicas that fetch report four times as often, so one or two lost reports do no harm."""


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One incarnation of the trainer and the update at which it began."""

    incarnation: int
    """The incarnation."""
    resumed_from: int
    """Update of the checkpoint that it resumed from; 0 for a fresh start."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor of a version."""

    name: str
    """Name in the state dict."""
    dtype: str
    """Type as safetensors names it, such as `F32`."""
    shape: tuple[int, ...]
    """Shape."""
    shard: str
    """Name of the file that contains it."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of a version."""

    name: str
    """File name."""
    size_bytes: int
    """File size."""
    sha256: str
    """Checksum of the file, hexadecimal."""
    piece_bytes: int = 0
    """Length of each piece except the last; 0 in manifests without pieces."""
    pieces: tuple[str, ...] = ()
    """Digest of each piece, hexadecimal. A receiver verifies and relays bytes piece by piece."""
    piece_hash: PieceHash = "sha256"
    """Hash function of the pieces; manifests of schema 1 use SHA-256."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """The base model of a version that contains only an adapter's tensors."""

    base_fingerprint: str
    """SHA-256 over the weights of the base model, as computed by `fairlead.nn.adapters.fingerprint`."""
    config: Mapping[str, object]
    """Content of peft's `adapter_config.json`; it names the base model."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Log-probs of a fixed sequence, computed by the trainer; an engine that loaded the weights agrees."""

    token_ids: tuple[int, ...]
    """The sequence."""
    logprobs: tuple[float, ...]
    """Log-prob of each token but the first, given those before it, at temperature 1."""
    dtype: str
    """`float32`; or `bfloat16` if the trainer computes in it, or publishes weights that are rounded to it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a version."""

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
    """Base model, if the version contains only an adapter; None if it contains the whole model."""
    probe: Probe | None = None
    """What the weights compute; None in versions of older trainers."""


def is_valid(version: WeightVersion, lineage: Sequence[Ancestor]) -> bool:
    """Return whether a version belongs to the lineage.

    (j, u) belongs to it if incarnation j is in it and no later incarnation resumed from an update before u.
    """
    known = any(ancestor.incarnation == version.incarnation for ancestor in lineage)
    return known and all(
        version.update <= ancestor.resumed_from
        for ancestor in lineage
        if ancestor.incarnation > version.incarnation
    )


class WeightSource(Protocol):
    """The versions as a replica follows them: it polls for the newest version and fetches it."""

    async def latest(self) -> Manifest | None:
        """Return the manifest of the newest valid version, None if there is none. Cheap enough to poll."""
        ...

    async def fetch(self, manifest: Manifest) -> Path:
        """Return a folder with the verified files of a version.

        Raises:
            NotFound: if the version was deleted because a newer one exists.
            CorruptWeights: if a file does not match the manifest; the message names the file.
            OutOfSpace, ReadOnlyDisk: if the files cannot be written.
            Unavailable: if no source of the bytes answers.
        """
        ...


class VerifiedLength:
    """How many bytes of a shard that is being fetched are verified. Belongs to one event loop."""

    def __init__(self, verified_bytes: int = 0) -> None:
        self.verified_bytes = verified_bytes
        self.closed = False
        self._changed = asyncio.Event()

    def advance(self, verified_bytes: int) -> None:
        """Set the number of verified bytes, which only grows."""
        self.verified_bytes = verified_bytes
        self._notify()

    def close(self) -> None:
        """Report that no more bytes will be verified."""
        self.closed = True
        self._notify()

    async def wait_beyond(self, offset_bytes: int, *, timeout_seconds: float) -> int:
        """Return the verified bytes once they exceed `offset_bytes`, on timeout, or when closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self.verified_bytes <= offset_bytes and not self.closed:
                    await self._changed.wait()
        return self.verified_bytes

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass(frozen=True, slots=True)
class OpenShard:
    """A shard that is open for reading; it stays readable when its version is deleted meanwhile."""

    descriptor: int
    """Descriptor of the open file."""
    size_bytes: int
    """Size of the whole shard."""
    verified: VerifiedLength | None = None
    """How much of the shard can be sent; None if all of it."""

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


class ShardStore(Protocol):
    """Versions whose bytes can be sent: the trainer's store at the origin, the cache at a replica."""

    def open(self, version: WeightVersion, shard: str) -> OpenShard:
        """Open a shard by its name in the manifest.

        Raises:
            NotFound: if the store does not have the version, or the version has no such shard.
        """
        ...
