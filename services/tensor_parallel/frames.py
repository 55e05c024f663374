"""Messages between a service and its ranks over pipes: a JSON header and some arrays. Nothing is pickled."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from safetensors.numpy import load, save

_SIZES = struct.Struct("<II")

Arrays = Mapping[str, np.ndarray[Any, np.dtype[Any]]]
"""Arrays by name."""


def write(file: IO[bytes], header: Mapping[str, object], arrays: bytes = b"") -> None:
    """Write one message.

    Raises:
        OSError: if nobody reads it any more.
    """
    text = json.dumps(header).encode()
    file.write(_SIZES.pack(len(text), len(arrays)) + text + arrays)
    file.flush()


def read(file: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Wait for a message; return its header and its arrays, or None if the writer has ended."""
    sizes = file.read(_SIZES.size)
    if len(sizes) < _SIZES.size:
        return None
    header_bytes, arrays_bytes = _SIZES.unpack(sizes)
    content = file.read(header_bytes + arrays_bytes)
    if len(content) < header_bytes + arrays_bytes:
        return None
    header = json.loads(content[:header_bytes])
    assert isinstance(header, dict)
    return header, content[header_bytes:]


def packed(arrays: Arrays) -> bytes:
    """Return arrays as bytes, in the format of safetensors."""
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def unpacked(data: bytes) -> Arrays:
    """Return what `packed` got."""
    return load(data)
