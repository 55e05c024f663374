"""Writes safetensors files tensor by tensor, so that no copy of all of them is held in memory.

The header comes first, so shapes and types are given before the values. Does not know what the tensors are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fairlead.transports.weights.manifest import Digest

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape and type of a tensor that will be written."""

    shape: tuple[int, ...]
    """Lengths of its dimensions."""
    dtype: torch.dtype
    """Type of its elements."""

    @classmethod
    def of(cls, tensor: Tensor) -> Shape:
        """Return shape and type of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


def split(sizes: Mapping[str, int], *, limit_bytes: int) -> list[list[str]]:
    """Divide tensors, in their order, among files of at most `limit_bytes`, or of one tensor.

    Args:
        sizes: bytes of each tensor by name.
        limit_bytes: largest size of a file with more than one tensor.
    """
    files: list[list[str]] = []
    size_bytes = 0
    for name, nbytes in sizes.items():
        if not files or size_bytes + nbytes > limit_bytes:
            files.append([])
            size_bytes = 0
        files[-1].append(name)
        size_bytes += nbytes
    return files


class TensorFile:
    """A safetensors file that is being written; its tensors come in the order of the header."""

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, Shape],
        *,
        digest: Digest | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Create the file and write its header.

        Args:
            path: replaced if it exists.
            shapes: every tensor that will be written.
            digest: gets all bytes as they are written.
            metadata: written into the header.
        """
        self._left = dict(shapes)
        self._digest = digest
        self._file = path.open("wb")
        self._write(_header(shapes, metadata))

    def add(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor.

        Raises:
            ValueError: if another one is next, or shape or type differ from the header.
        """
        following = next(iter(self._left), None)
        if name != following or Shape.of(tensor) != self._left.pop(name):
            raise ValueError(f"{self._file.name}: got {name} {Shape.of(tensor)}, expected {following}")
        if tensor.numel():
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            self._write(values.numpy().data)

    def close(self) -> None:
        """Close the file.

        Raises:
            ValueError: if a tensor of the header was not written.
        """
        self._file.close()
        if self._left:
            raise ValueError(f"{self._file.name} lacks {', '.join(self._left)}")

    def abandon(self) -> None:
        """Close the file, complete or not."""
        self._file.close()

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        if self._digest is not None:
            self._digest.update(data)


def _header(shapes: Mapping[str, Shape], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, shape in shapes.items():
        end = start + shape.nbytes
        entries[name] = {
            "dtype": _TYPES[shape.dtype],
            "shape": list(shape.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
