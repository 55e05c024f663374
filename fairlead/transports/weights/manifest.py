"""The manifest of a weight version: how it is written, read and held against the files beside it.

It stands between the trainer's shards and whoever fetches them. Names, types and shapes come from the header
of each safetensors file, so nothing here needs torch; it does not know where versions are stored.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Never, get_args

from fairlead.errors import CorruptWeights, InvalidInput
from fairlead.transports.weights import pieces
from fairlead.transports.weights.base import (
    Adapter,
    Ancestor,
    Manifest,
    PieceHash,
    Shard,
    TensorEntry,
    is_valid,
)
from fairlead.types import WeightVersion

FILE_NAME = "manifest.json"
"""Name of the manifest in a version's folder."""

_SCHEMA = 2
"""1: pieces are hashed with SHA-256."""
_MAX_HEADER_BYTES = 100 << 20  # the safetensors format's own limit
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")
_READ_BYTES = 1 << 20


def build(
    folder: Path,
    version: WeightVersion,
    *,
    parent: WeightVersion | None,
    lineage: Sequence[Ancestor],
    adapter: Adapter | None = None,
) -> Manifest:
    """The manifest of the shards in a folder.

    Raises:
        InvalidInput: if the folder holds no shard, something else than shards, a tensor twice, or the
            lineage does not contain the version.
        CorruptWeights: if a shard is not a safetensors file.
    """
    if not is_valid(version, lineage):
        raise InvalidInput("lineage", got=tuple(lineage), allowed=f"one to which {version} belongs")
    shards: list[Shard] = []
    tensors: list[TensorEntry] = []
    for path in sorted(folder.iterdir()):
        if not _SHARD_NAME.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            raise InvalidInput("shards", got=path.name, allowed="plain files named *.safetensors")
        tensors.extend(read_header(path))
        shards.append(pieces.describe(path))
    if not tensors:
        raise InvalidInput("shards", got="no tensors", allowed="at least one")
    name, times = Counter(tensor.name for tensor in tensors).most_common(1)[0]
    if times > 1:
        raise InvalidInput("shards", got=f"tensor {name} {times} times", allowed="every tensor once")
    return Manifest(version, parent, tuple(lineage), tuple(tensors), tuple(shards), adapter)


def read_header(path: Path) -> tuple[TensorEntry, ...]:
    """Names, types and shapes of a safetensors file, sorted by name.

    Raises:
        CorruptWeights: if it is not one, or is shorter than its header says.
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
        _corrupt(path, f"has {size} bytes, its header says {8 + length + max(ends, default=0)}")
    return tuple(entries)


def sha256(path: Path) -> str:
    """Checksum of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def encode(manifest: Manifest) -> bytes:
    """Manifest → JSON with a checksum over its content."""
    body = {
        "schema": _SCHEMA,
        "version": str(manifest.version),
        "parent": str(manifest.parent) if manifest.parent else None,
        "lineage": [asdict(ancestor) for ancestor in manifest.lineage],
        "shards": [asdict(shard) for shard in manifest.shards],
        "tensors": [asdict(tensor) for tensor in manifest.tensors],
        "adapter": asdict(manifest.adapter) if manifest.adapter else None,
    }
    return json.dumps({"sha256": _body_digest(body), "manifest": body}, indent=1).encode()


def read(folder: Path, version: WeightVersion) -> Manifest:
    """The manifest of a version's folder, checked against its own checksum.

    Raises:
        CorruptWeights: if it is missing, damaged, names another version, or names a file outside the folder.
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
    """The manifest that `encode` wrote, checked against its own checksum.

    Raises:
        CorruptWeights: if it is damaged, names another version, or names a file outside its folder.
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
        _corrupt(where, f"is of version {manifest.version}, not {version}")
    if not is_valid(version, manifest.lineage):
        _corrupt(where, "has a lineage to which its version does not belong")
    for shard in manifest.shards:
        if not _SHARD_NAME.fullmatch(shard.name):
            _corrupt(where, f"names a shard {shard.name!r}, which is not a plain file name")
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """Holds every shard against the manifest.

    Raises:
        CorruptWeights: for a shard that is missing, has another size, another SHA-256 or other tensors.
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
    """Holds the headers of shards, whose bytes are verified already, against the manifest.

    Raises:
        CorruptWeights: if they hold other tensors.
    """
    found = [entry for shard in manifest.shards for entry in read_header(folder / shard.name)]
    if sorted(found, key=lambda entry: entry.name) != sorted(manifest.tensors, key=lambda entry: entry.name):
        _corrupt(folder / FILE_NAME, "lists other tensors than its shards hold")


def _decode(body: dict[str, Any]) -> Manifest:
    if body["schema"] not in range(1, _SCHEMA + 1):
        raise ValueError(f"schema {body['schema']}, this fairlead reads 1 to {_SCHEMA}")
    return Manifest(
        version=WeightVersion.parse(body["version"]),
        parent=WeightVersion.parse(body["parent"]) if body["parent"] else None,
        lineage=tuple(Ancestor(int(a["incarnation"]), int(a["resumed_from"])) for a in body["lineage"]),
        tensors=tuple(
            TensorEntry(str(t["name"]), str(t["dtype"]), tuple(map(int, t["shape"])), str(t["shard"]))
            for t in body["tensors"]
        ),
        shards=tuple(map(_decode_shard, body["shards"])),
        adapter=_decode_adapter(body["adapter"]) if body.get("adapter") else None,
    )


def _decode_shard(body: dict[str, Any]) -> Shard:
    size, piece_bytes = int(body["size_bytes"]), int(body.get("piece_bytes", 0))
    digests = tuple(map(str, body.get("pieces", ())))
    if digests and (piece_bytes < 1 or len(digests) != -(-size // piece_bytes)):
        raise ValueError(f"{len(digests)} pieces of {piece_bytes} bytes in {size}")
    piece_hash = body.get("piece_hash", "sha256")
    if piece_hash not in get_args(PieceHash):
        raise ValueError(f"pieces hashed with {piece_hash!r}")
    return Shard(str(body["name"]), size, str(body["sha256"]), piece_bytes, digests, piece_hash)


def _decode_adapter(body: dict[str, Any]) -> Adapter:
    return Adapter(str(body["base_fingerprint"]), dict(body["config"]))


def _body_digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _corrupt(path: Path, what: str) -> Never:
    raise CorruptWeights(f"{path} {what}")
