"""The pieces of a shard: some MiB each with a digest of its own, so that bytes can be verified as they come.

A piece is what a replica passes on, and what it has to fetch again after damage. Between the manifest, which
lists the digests, and whoever reads or writes shards; knows files and no wire.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from fairlead.transports.weights.base import PieceHash, Shard

PIECE_BYTES = 4 << 20
"""Length of a piece; a chain of n relays takes as long as one fetch and n pieces (benchmarks/weights.py)."""
_PIECE_HASH: PieceHash = "blake3"
"""A third of the time of SHA-256, which would take longer than the bytes take to come."""


class Digest(Protocol):
    """Of a piece that comes block by block."""

    def update(self, data: bytes | memoryview, /) -> object:
        """The next bytes."""
        ...

    def hexdigest(self) -> str:
        """Of all so far."""
        ...


_HASHES: dict[PieceHash, Callable[[], Digest]] = {"sha256": hashlib.sha256, "blake3": blake3}


def describe(path: Path, *, piece_bytes: int = PIECE_BYTES) -> Shard:
    """Name, size and digests of a shard, the whole and its pieces hashed side by side."""
    whole, pieces, size = hashlib.sha256(), [], 0
    with path.open("rb") as file, ThreadPoolExecutor(1) as other:
        while piece := file.read(piece_bytes):
            hashed = other.submit(whole.update, piece)
            digest = _HASHES[_PIECE_HASH]()
            digest.update(piece)
            pieces.append(digest.hexdigest())
            size += len(piece)
            hashed.result()
    return Shard(path.name, size, whole.hexdigest(), piece_bytes, tuple(pieces), _PIECE_HASH)


def layout(shard: Shard) -> tuple[int, tuple[str, ...], Callable[[], Digest]]:
    """Length of the pieces, their digests and what makes one; the whole shard is the only piece where no
    others are known.
    """
    if shard.pieces:
        return shard.piece_bytes, shard.pieces, _HASHES[shard.piece_hash]
    return max(1, shard.size_bytes), (shard.sha256,) if shard.size_bytes else (), hashlib.sha256


def verified_bytes(path: Path, shard: Shard) -> int:
    """How far a file that may be incomplete or damaged matches the shard, in whole pieces from its start."""
    piece_bytes, digests, new_digest = layout(shard)
    verified = 0
    try:
        with path.open("rb") as file:
            for digest in digests:
                piece = new_digest()
                left = min(piece_bytes, shard.size_bytes - verified)
                end = verified + left
                while left and (block := file.read(min(left, PIECE_BYTES))):
                    piece.update(block)
                    left -= len(block)
                if left or piece.hexdigest() != digest:
                    break
                verified = end
    except FileNotFoundError:
        return 0
    return verified
