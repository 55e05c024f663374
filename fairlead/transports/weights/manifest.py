"""The manifest of a weight version: how it is built, encoded, decoded and checked against the shards.

Written when the trainer publishes a version, checked by every process that fetches it. A shard is described
as a whole and in pieces of some MiB, each with a digest, so that a receiver can verify bytes as they arrive.
Names, types and shapes come from the safetensors headers, so nothing here needs torch. Knows nothing about
storage or the wire format.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Never, Protocol, get_args

from blake3 import blake3

from fairlead.errors import CorruptWeights, InvalidInput
from fairlead.transports.weights.base import (
    Adapter,
    Ancestor,
    Manifest,
    PieceHash,
    Probe,
    Shard,
    TensorEntry,
    is_valid,
)
from fairlead.types import WeightVersion

FILE_NAME = "manifest.json"
"""Name of the manifest in a version's folder."""
PIECE_BYTES = 4 << 20
"""Length of a piece; a chain of n relays takes as long as one fetch and n pieces, as
benchmarks/weights/relay.py measures."""

_PIECE_HASH: PieceHash = "blake3"
"""Takes a third of the time of SHA-256, which would be slower than the network."""
_SCHEMA = 2
"""In schema 1, pieces are hashed with SHA-256."""
_MAX_HEADER_BYTES = 100 << 20  # limit of the safetensors format
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")
_READ_BYTES = 1 << 20


class Digest(Protocol):
    """An incremental hash."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Add the next bytes."""
        ...

    def hexdigest(self) -> str:
        """Return the hash of all bytes so far, hexadecimal."""
        ...


_HASHES: dict[PieceHash, Callable[[], Digest]] = {"sha256": hashlib.sha256, "blake3": blake3}


def build(
    folder: Path,
    version: WeightVersion,
    *,
    parent: WeightVersion | None,
    lineage: Sequence[Ancestor],
    adapter: Adapter | None = None,
    probe: Probe | None = None,
    described: Mapping[str, Shard] = {},
) -> Manifest:
    """Build the manifest of the shards in a folder.

    Args:
        folder: contains the shards and nothing else.
        version: the version that they are.
        parent: the version that it was trained from.
        lineage: the incarnations whose versions count.
        adapter: the adapter that the shards hold; None for a whole model.
        probe: what the weights compute.
        described: shards, by name, that their writers have described; the others are hashed here.

    Raises:
        InvalidInput: if the folder contains no shard, other files than shards, or a tensor twice, or if the
            lineage does not contain the version.
        CorruptWeights: if a shard is not a safetensors file.
    """
    if not is_valid(version, lineage):
        raise InvalidInput("lineage", got=tuple(lineage), allowed=f"a lineage that contains {version}")
    shards: list[Shard] = []
    tensors: list[TensorEntry] = []
    for path in sorted(folder.iterdir()):
        if not _SHARD_NAME.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            raise InvalidInput("shards", got=path.name, allowed="plain files named *.safetensors")
        tensors.extend(read_header(path))
        shards.append(described.get(path.name) or describe_shard(path))
    if not tensors:
        raise InvalidInput("shards", got="no tensors", allowed="at least one")
    name, times = Counter(tensor.name for tensor in tensors).most_common(1)[0]
    if times > 1:
        raise InvalidInput("shards", got=f"tensor {name} {times} times", allowed="every tensor once")
    return Manifest(version, parent, tuple(lineage), tuple(tensors), tuple(shards), adapter, probe)


def describe_shard(path: Path, *, piece_bytes: int = PIECE_BYTES) -> Shard:
    """Return name, size and digests of a shard. The whole and its pieces are hashed in two threads."""
    whole = hashlib.sha256()
    pieces: list[str] = []
    size = 0
    with path.open("rb") as file, ThreadPoolExecutor(1) as other:
        while piece := file.read(piece_bytes):
            hashed = other.submit(whole.update, piece)
            digest = _HASHES[_PIECE_HASH]()
            digest.update(piece)
            pieces.append(digest.hexdigest())
            size += len(piece)
            hashed.result()
    return Shard(path.name, size, whole.hexdigest(), piece_bytes, tuple(pieces), _PIECE_HASH)


def piece_layout(shard: Shard) -> tuple[int, tuple[str, ...], Callable[[], Digest]]:
    """Return the length of a shard's pieces, their digests and their hash function.

    A shard of a manifest without pieces is a single piece.
    """
    if shard.pieces:
        return shard.piece_bytes, shard.pieces, _HASHES[shard.piece_hash]
    return max(1, shard.size_bytes), (shard.sha256,) if shard.size_bytes else (), hashlib.sha256


def verified_prefix_bytes(path: Path, shard: Shard) -> int:
    """Return how many bytes from the start of a file match the shard, in whole pieces.

    The file may be missing, incomplete or damaged.
    """
    piece_bytes, digests, new_digest = piece_layout(shard)
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


def read_header(path: Path) -> tuple[TensorEntry, ...]:
    """Return names, types and shapes of the tensors in a safetensors file, sorted by name.

    Raises:
        CorruptWeights: if the file is not a safetensors file, or does not have the size that its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
            _corrupt(path, "is not a safetensors file, or is truncated")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        entries = [
            TensorEntry(str(name), str(entry["dtype"]), tuple(map(int, entry["shape"])), path.name)
            for name, entry in sorted(header.items())
        ]
        ends = [int(entry["data_offsets"][1]) for entry in header.values()]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        _corrupt(path, "has a damaged safetensors header")
    if max(ends, default=0) != size - 8 - length:
        _corrupt(path, f"has {size} bytes, but its header says {8 + length + max(ends, default=0)}")
    return tuple(entries)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def encode(manifest: Manifest) -> bytes:
    """Encode a manifest as JSON, with a checksum over its content."""
    body = {
        "schema": _SCHEMA,
        "version": str(manifest.version),
        "parent": str(manifest.parent) if manifest.parent else None,
        "lineage": [asdict(ancestor) for ancestor in manifest.lineage],
        "shards": [asdict(shard) for shard in manifest.shards],
        "tensors": [asdict(tensor) for tensor in manifest.tensors],
        "adapter": asdict(manifest.adapter) if manifest.adapter else None,
    }
    if manifest.probe:
        body["probe"] = asdict(manifest.probe)
    return json.dumps({"sha256": _body_digest(body), "manifest": body}, indent=1).encode()


def read(folder: Path, version: WeightVersion) -> Manifest:
    """Read the manifest in a version's folder and check its checksum.

    Raises:
        CorruptWeights: if the manifest is missing or damaged, or names another version or a file outside the
            folder.
    """
    path = folder / FILE_NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        _corrupt(path, "is missing")
    except OSError as error:
        _corrupt(path, f"is not a manifest ({type(error).__name__}: {error})")
    return decode(content, version, where=path)


def decode(content: bytes, version: WeightVersion, *, where: Path) -> Manifest:
    """Decode a manifest that `encode` wrote and check its checksum; `where` is its path, for messages.

    Raises:
        CorruptWeights: if the manifest is damaged, or names another version or a file outside its folder.
    """
    try:
        outer = json.loads(content)
        body = outer["manifest"]
        if outer["sha256"] != _body_digest(body):
            _corrupt(where, "does not match its own checksum")
        manifest = _decode(body)
    except (ValueError, KeyError, TypeError, AttributeError, InvalidInput) as error:
        _corrupt(where, f"is not a manifest ({type(error).__name__}: {error})")
    if manifest.version != version:
        _corrupt(where, f"is the manifest of {manifest.version}, not of {version}")
    if not is_valid(version, manifest.lineage):
        _corrupt(where, "has a lineage that does not contain its version")
    for shard in manifest.shards:
        if not _SHARD_NAME.fullmatch(shard.name):
            _corrupt(where, f"names a shard {shard.name!r}, which is not a plain file name")
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """Check every shard against the manifest.

    Raises:
        CorruptWeights: if a shard is missing, or differs in size, SHA-256 or tensors.
    """
    for shard in manifest.shards:
        path = folder / shard.name
        if path.is_symlink() or not path.is_file():
            _corrupt(path, "is missing")
        size = path.stat().st_size
        if size != shard.size_bytes:
            _corrupt(path, f"has {size} bytes instead of {shard.size_bytes}")
        if sha256(path) != shard.sha256:
            _corrupt(path, "does not match its SHA-256")
    check_tensors(folder, manifest)


def check_tensors(folder: Path, manifest: Manifest) -> None:
    """Check the headers of the shards, whose bytes are already verified, against the manifest.

    Raises:
        CorruptWeights: if they list other tensors.
    """
    found = [entry for shard in manifest.shards for entry in read_header(folder / shard.name)]
    if sorted(found, key=lambda entry: entry.name) != sorted(manifest.tensors, key=lambda entry: entry.name):
        _corrupt(folder / FILE_NAME, "lists other tensors than its shards contain")


def _decode(body: dict[str, Any]) -> Manifest:
    if body["schema"] not in range(1, _SCHEMA + 1):
        raise ValueError(f"schema {body['schema']}; this version of fairlead reads schemas 1 to {_SCHEMA}")
    return Manifest(
        version=WeightVersion.parse(body["version"]),
        parent=WeightVersion.parse(body["parent"]) if body["parent"] else None,
        lineage=tuple(Ancestor(int(a["incarnation"]), int(a["resumed_from"])) for a in body["lineage"]),
        tensors=tuple(
            TensorEntry(str(t["name"]), str(t["dtype"]), tuple(map(int, t["shape"])), str(t["shard"]))
            for t in body["tensors"]
        ),
        shards=tuple(map(decode_shard, body["shards"])),
        adapter=_decode_adapter(body["adapter"]) if body.get("adapter") else None,
        probe=_decode_probe(body["probe"]) if body.get("probe") else None,
    )


def decode_shard(body: dict[str, Any]) -> Shard:
    """Return a shard from its fields as JSON.

    Raises:
        ValueError, KeyError: if a field is missing or invalid.
    """
    size, piece_bytes = int(body["size_bytes"]), int(body.get("piece_bytes", 0))
    digests = tuple(map(str, body.get("pieces", ())))
    if digests and (piece_bytes < 1 or len(digests) != -(-size // piece_bytes)):
        raise ValueError(f"{len(digests)} pieces of {piece_bytes} bytes in a shard of {size} bytes")
    piece_hash = body.get("piece_hash", "sha256")
    if piece_hash not in get_args(PieceHash):
        raise ValueError(f"piece_hash {piece_hash!r}, allowed: {' or '.join(get_args(PieceHash))}")
    return Shard(str(body["name"]), size, str(body["sha256"]), piece_bytes, digests, piece_hash)


def _decode_adapter(body: dict[str, Any]) -> Adapter:
    return Adapter(str(body["base_fingerprint"]), dict(body["config"]))


def _decode_probe(body: dict[str, Any]) -> Probe:
    token_ids = tuple(map(int, body["token_ids"]))
    logprobs = tuple(map(float, body["logprobs"]))
    if len(logprobs) != len(token_ids) - 1:
        raise ValueError(f"a probe of {len(token_ids)} tokens with {len(logprobs)} log-probs")
    return Probe(token_ids, logprobs, str(body["dtype"]))


def _body_digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _corrupt(path: Path, what: str) -> Never:
    raise CorruptWeights(f"{path} {what}")
