"""Tensors of the Open Inference Protocol over HTTP: as JSON, or as bytes behind it. Knows no model.

https://github.com/kserve/open-inference-protocol, and Triton's extension for binary data. A shape is believed
only where as many elements were sent, so that none is larger than the body.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.errors import InvalidInput

_NUMPY = {
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input."""

    name: str
    """As the model calls it."""
    datatype: str
    """In the protocol's words, such as INT64."""
    shape: tuple[int, ...]
    """Every dimension is at least 1, and there are as many elements as they say."""
    texts: tuple[str, ...] = ()
    """The elements of BYTES, row by row."""
    numbers: npt.NDArray[np.int64] | None = None
    """The elements of integers, row by row, flat."""


def read_inputs(request: Mapping[str, Any], binary: bytes) -> dict[str, Tensor]:
    """The inputs of a request, by name.

    Args:
        request: its JSON.
        binary: what followed it.

    Raises:
        InvalidInput: for the first input that is not what it says, or bytes that belong to none.
    """
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise InvalidInput("inputs", got=_kind(inputs), allowed="a list of tensors, at least one")
    found: dict[str, Tensor] = {}
    offset = 0
    for index, entry in enumerate(inputs):
        if not isinstance(entry, dict):
            raise InvalidInput("inputs", index=index, got=_kind(entry), allowed="a tensor")
        size = _binary_size(entry, index)
        raw = None if size is None else binary[offset : offset + size]
        if raw is not None and size is not None:
            if len(raw) < size:
                raise InvalidInput(
                    "inputs", index=index, got=f"{len(raw)} bytes of data", allowed=f"the {size} that it says"
                )
            offset += size
        tensor = _read(entry, raw, index)
        if tensor.name in found:
            raise InvalidInput("inputs", index=index, got=f"{tensor.name} twice", allowed="each name once")
        found[tensor.name] = tensor
    if offset != len(binary):
        raise InvalidInput("body", got=f"{len(binary) - offset} bytes behind the last tensor", allowed="none")
    return found


def _read(entry: Mapping[str, Any], raw: bytes | None, index: int) -> Tensor:
    name, datatype = entry.get("name"), entry.get("datatype")
    if not isinstance(name, str) or not name:
        raise InvalidInput("inputs", index=index, got=_kind(name), allowed="a `name`")
    field = f"inputs.{name[:64]}"
    if not isinstance(datatype, str) or (datatype != "BYTES" and datatype not in _NUMPY):
        known = ", ".join(("BYTES", *_NUMPY))
        raise InvalidInput(field, got=f"datatype {datatype!r}"[:80], allowed=f"one of {known}")
    shape = _shape(entry.get("shape"), field)
    count = math.prod(shape)
    if datatype == "BYTES":
        texts = _texts(entry.get("data"), field) if raw is None else _binary_texts(raw, field)
        _check_count(field, len(texts), count)
        return Tensor(name, datatype, shape, texts=texts)
    if raw is None:
        values = _flat(entry.get("data"), field)
        _check_count(field, len(values), count)
        return Tensor(name, datatype, shape, numbers=_integers(values, datatype, field))
    kind = np.dtype(_NUMPY[datatype])
    if len(raw) != count * kind.itemsize:
        raise InvalidInput(
            field, got=f"{len(raw)} bytes", allowed=f"{count * kind.itemsize}: {count} elements of {datatype}"
        )
    return Tensor(name, datatype, shape, numbers=_narrowed(np.frombuffer(raw, kind), field))


def _binary_size(entry: Mapping[str, Any], index: int) -> int | None:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidInput("inputs", index=index, got=_kind(parameters), allowed="`parameters` as an object")
    if "shared_memory_region" in parameters:
        raise InvalidInput(
            "inputs",
            index=index,
            got="shared memory",
            allowed="data in the body",
        )
    size = parameters.get("binary_data_size")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
        raise InvalidInput("inputs", index=index, got=f"binary_data_size {size!r}"[:80], allowed="0 or more")
    return size


def _shape(shape: object, field: str) -> tuple[int, ...]:
    found = shape if isinstance(shape, list) and len(shape) <= 8 else [0]
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in found):
        raise InvalidInput(
            field, got=f"shape {shape!r}"[:80], allowed="a list of dimensions, each at least 1"
        )
    return tuple(found)


def _check_count(field: str, got: int, wanted: int) -> None:
    if got != wanted:
        raise InvalidInput(field, got=f"{got} elements", allowed=f"{wanted}, as the shape says")


def _flat(data: object, field: str) -> list[Any]:
    """Elements row by row, of lists in lists or of one flat list."""
    if not isinstance(data, list):
        raise InvalidInput(field, got=_kind(data), allowed="`data` as a list, or binary data")
    flat: list[Any] = []
    # Nested no deeper than the JSON parser allows.
    for one in data:
        if isinstance(one, list):
            flat.extend(_flat(one, field))
        else:
            flat.append(one)
    return flat


def _texts(data: object, field: str) -> tuple[str, ...]:
    values = _flat(data, field)
    for position, value in enumerate(values):
        if not isinstance(value, str):
            raise InvalidInput(field, index=position, got=_kind(value), allowed="a text")
    return tuple(values)


def _binary_texts(raw: bytes, field: str) -> tuple[str, ...]:
    """Each element is its length in four bytes, then UTF-8."""
    texts: list[str] = []
    offset = 0
    while offset < len(raw):
        if offset + _LENGTH.size > len(raw):
            raise InvalidInput(field, index=len(texts), got="a broken length", allowed="four bytes of it")
        (size,) = _LENGTH.unpack_from(raw, offset)
        offset += _LENGTH.size
        part = raw[offset : offset + size]
        if len(part) < size:
            raise InvalidInput(
                field, index=len(texts), got=f"{len(part)} bytes", allowed=f"the {size} that its length says"
            )
        try:
            texts.append(part.decode())
        except UnicodeDecodeError as error:
            raise InvalidInput(field, index=len(texts), got=str(error.reason), allowed="UTF-8") from None
        offset += size
    return tuple(texts)


def _integers(values: Sequence[object], datatype: str, field: str) -> npt.NDArray[np.int64]:
    limits = np.iinfo(_NUMPY[datatype])
    least, most = max(limits.min, -(2**63)), min(int(limits.max), 2**63 - 1)
    for position, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            got = value if isinstance(value, int) else _kind(value)
            raise InvalidInput(field, index=position, got=got, allowed=f"whole numbers that fit {datatype}")
    return np.array(values, dtype=np.int64)


def _narrowed(values: npt.NDArray[Any], field: str) -> npt.NDArray[np.int64]:
    if values.dtype == np.uint64 and len(values) and int(values.max()) > 2**63 - 1:
        raise InvalidInput(field, got=int(values.max()), allowed="numbers below 2⁶³")
    return values.astype(np.int64)


def _kind(value: object) -> str:
    """What something is, without its text."""
    return "nothing" if value is None else f"a {type(value).__name__}"
