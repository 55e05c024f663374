"""Tensors of the Open Inference Protocol v2 → items to score, and scores → a tensor. Knows nothing about
transports.

Names are those of NeMo-Aligner's reward models: `sentences`, or `tokens` with `sequence_lengths`; `rewards`.
Shape, type and size of a tensor are checked against its data before anything is built from them. Ids stay in
numpy's buffers until their rows are cut.

Shapes: B sequences, S positions.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import InvalidInput
from fairlead.types import RewardInfo, ScoreItem, TokenPair, WholeText

SENTENCES = "sentences"
TOKENS = "tokens"
LENGTHS = "sequence_lengths"
REWARDS = "rewards"
INPUTS = (SENTENCES, TOKENS, LENGTHS)
DATATYPES = {SENTENCES: "BYTES", TOKENS: "INT64", LENGTHS: "INT64", REWARDS: "FP32"}
"""Datatype of each tensor. The other integer types are accepted as well."""
WIDTHS = {SENTENCES: 1, TOKENS: -1, LENGTHS: 1, REWARDS: 1}
"""Second dimension of each tensor, whose first is B; −1 is any. A tensor of width 1 may also be [B]."""
INTEGERS = {
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
}
"""Integer datatypes and their numpy types."""

_EXPECTED = f"`{SENTENCES}`, or `{TOKENS}` and `{LENGTHS}`"
_LENGTH = struct.Struct("<I")
_MAX_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True)
class InputTensor:
    """An input as the caller sent it."""

    name: str
    """Name of the tensor."""
    datatype: str
    """Datatype in the protocol's words, such as INT64."""
    shape: tuple[int, ...]
    """The dimensions that the caller states."""
    parameters: tuple[str, ...] = ()
    """Names of the tensor's parameters."""
    raw: bytes | memoryview | None = None
    """The elements as bytes, little-endian; each element of BYTES follows its length in four bytes."""
    values: Sequence[Any] = ()
    """The elements row by row, if `raw` is None: integers, or `str` or UTF-8 `bytes` for BYTES."""

    @property
    def rows(self) -> int:
        """First dimension, B."""
        return self.shape[0]

    @property
    def field(self) -> str:
        """The tensor in error messages."""
        return f"inputs.{self.name}"

    def error(self, *, got: object, allowed: str, index: int | None = None) -> InvalidInput:
        """Return an error about the tensor's contents."""
        return InvalidInput(self.field, index=index, got=got, allowed=allowed)


def read_items(inputs: Sequence[InputTensor], info: RewardInfo | None, *, max_items: int) -> list[ScoreItem]:
    """Return the items that an inference request asks to score.

    Args:
        inputs: the tensors of the request.
        info: the model, for its vocabulary and sequence length; None if they are not known here.
        max_items: largest B.

    Raises:
        InvalidInput: a tensor is missing, unknown, repeated or inconsistent.
    """
    if not inputs:
        raise InvalidInput("inputs", got="none", allowed=_EXPECTED)
    tensors = _by_name(inputs)
    first = next(iter(tensors.values()))
    if first.rows > max_items:
        raise first.error(got=f"{first.rows} rows", allowed=f"at most {max_items}")
    if set(tensors) == {SENTENCES}:
        return [WholeText(text) for text in _texts(first)]
    if set(tensors) != {TOKENS, LENGTHS}:
        raise InvalidInput("inputs", got=", ".join(sorted(tensors)), allowed=_EXPECTED)
    return _token_items(tensors[TOKENS], tensors[LENGTHS], info)


def check_outputs(outputs: Sequence[tuple[str, Iterable[str]]]) -> None:
    """Check the requested outputs, given as names with the names of their parameters; none means all.

    Raises:
        InvalidInput: another output than `rewards`, the same one twice, or an unsupported way to send it.
    """
    for index, (name, parameters) in enumerate(outputs):
        if name != REWARDS or index:
            got = name[:80] if name != REWARDS else f"`{REWARDS}` twice"
            raise InvalidInput("outputs", index=index, got=got, allowed=f"`{REWARDS}` once")
        for parameter in parameters:
            if parameter == "classification" or parameter.startswith("shared_memory"):
                raise InvalidInput(
                    f"outputs.{REWARDS}.parameters", got=parameter, allowed="the tensor itself"
                )


def raw_rewards(scores: Sequence[float]) -> bytes:
    """Return the tensor `rewards`, FP32 [B, 1], little-endian."""
    return np.asarray(scores, dtype="<f4").tobytes()


def _by_name(inputs: Sequence[InputTensor]) -> dict[str, InputTensor]:
    found: dict[str, InputTensor] = {}
    for index, tensor in enumerate(inputs):
        if tensor.name not in INPUTS:
            raise InvalidInput("inputs", index=index, got=tensor.name[:80], allowed=_EXPECTED)
        if tensor.name in found:
            raise InvalidInput("inputs", index=index, got=f"`{tensor.name}` twice", allowed="each input once")
        _check_claims(tensor)
        found[tensor.name] = tensor
    return found


def _check_claims(tensor: InputTensor) -> None:
    expected = DATATYPES[tensor.name]
    if tensor.datatype != expected and not (expected in INTEGERS and tensor.datatype in INTEGERS):
        allowed = f"{expected}, or another integer type" if expected in INTEGERS else expected
        raise InvalidInput(f"{tensor.field}.datatype", got=tensor.datatype[:80], allowed=allowed)
    width = WIDTHS[tensor.name]
    shape = tensor.shape
    fits = (len(shape) == 2 and width in (-1, shape[1])) or (len(shape) == 1 and width == 1)
    if not fits or min(shape) < 1:
        allowed = "[B, S], each at least 1" if width < 0 else f"[B, {width}], B at least 1"
        raise InvalidInput(f"{tensor.field}.shape", got=list(shape[:8]), allowed=allowed)
    for parameter in tensor.parameters:
        if parameter.startswith("shared_memory"):
            raise InvalidInput(
                f"{tensor.field}.parameters", got=parameter, allowed="the data in the request itself"
            )


def _texts(tensor: InputTensor) -> list[str]:
    elements: Sequence[Any] = tensor.values if tensor.raw is None else _raw_elements(tensor, tensor.raw)
    if len(elements) != tensor.rows:
        raise tensor.error(got=f"{len(elements)} elements", allowed=f"{tensor.rows}, to match the shape")
    texts: list[str] = []
    for index, element in enumerate(elements):
        try:
            texts.append(element if isinstance(element, str) else element.decode())
        except UnicodeDecodeError as error:
            got = f"invalid UTF-8 byte at position {error.start}"
            raise tensor.error(index=index, got=got, allowed="UTF-8") from None
    return texts


def _raw_elements(tensor: InputTensor, raw: bytes | memoryview) -> list[bytes]:
    elements: list[bytes] = []
    start = 0
    for index in range(tensor.rows):
        if start + _LENGTH.size > len(raw):
            raise tensor.error(got=f"{index} elements", allowed=f"{tensor.rows}, to match the shape")
        (size,) = _LENGTH.unpack_from(raw, start)
        start += _LENGTH.size
        if start + size > len(raw):
            got = f"a length of {size} bytes, but {len(raw) - start} bytes follow"
            raise tensor.error(index=index, got=got, allowed="a length within the data")
        elements.append(bytes(raw[start : start + size]))
        start += size
    if start != len(raw):
        raise tensor.error(got=f"{len(raw) - start} bytes after the last element", allowed="none")
    return elements


def _integers(tensor: InputTensor) -> NDArray[np.integer[Any]]:
    """Return the elements row by row, flat; those of `raw` in their own type, without a copy."""
    count = math.prod(tensor.shape)
    dtype = np.dtype(INTEGERS[tensor.datatype])
    if tensor.raw is None:
        values = tensor.values
        if len(values) != count:
            raise tensor.error(got=f"{len(values)} elements", allowed=f"{count}, to match the shape")
        least = int(np.iinfo(dtype).min)
        most = min(int(np.iinfo(dtype).max), _MAX_INT64)
        if min(values) < least or max(values) > most:
            index = next(i for i, value in enumerate(values) if not least <= value <= most)
            raise tensor.error(index=index, got=values[index], allowed=f"from {least} to {most}")
        return np.array(values, dtype=np.int64)
    if len(tensor.raw) != count * dtype.itemsize:
        allowed = f"{count * dtype.itemsize}, to match the shape"
        raise tensor.error(got=f"{len(tensor.raw)} bytes", allowed=allowed)
    numbers = np.frombuffer(tensor.raw, dtype=dtype)
    if dtype == np.dtype("<u8") and int(numbers.max()) > _MAX_INT64:
        index = int(numbers.argmax())
        raise tensor.error(index=index, got=int(numbers[index]), allowed=f"from 0 to {_MAX_INT64}")
    return numbers


def _token_items(tokens: InputTensor, lengths: InputTensor, info: RewardInfo | None) -> list[ScoreItem]:
    if tokens.rows != lengths.rows:
        raise lengths.error(
            got=f"{lengths.rows} rows for {tokens.rows} of `{TOKENS}`", allowed="one row for each"
        )
    lengths_B = _integers(lengths)
    tokens_BS = _integers(tokens).reshape(tokens.shape)
    limit = info.model.max_sequence_tokens if info is not None else 0
    longest = min(tokens.shape[1], limit or tokens.shape[1])
    bad_B = np.flatnonzero((lengths_B < 1) | (lengths_B > longest))
    if bad_B.size:
        row = int(bad_B[0])
        raise lengths.error(index=row, got=int(lengths_B[row]), allowed=f"from 1 to {longest}")
    size = info.model.vocabulary_size if info is not None else 0
    if size:
        _check_ids(tokens, tokens_BS, lengths_B, size)
    return [
        TokenPair((), tuple(row[:length].tolist())) for row, length in zip(tokens_BS, lengths_B, strict=True)
    ]


def _check_ids(
    tokens: InputTensor,
    tokens_BS: NDArray[np.integer[Any]],
    lengths_B: NDArray[np.integer[Any]],
    size: int,
) -> None:
    # One row at a time, which needs little memory.
    for row, (tokens_S, length) in enumerate(zip(tokens_BS, lengths_B, strict=True)):
        real_S = tokens_S[:length]
        if real_S.min() >= 0 and real_S.max() < size:
            continue
        position = int(np.flatnonzero((real_S < 0) | (real_S >= size))[0])
        got = f"{real_S[position]} at position {position}"
        raise tokens.error(index=row, got=got, allowed=f"ids from 0 to {size - 1}")
