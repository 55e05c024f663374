"""Tensors of the Open Inference Protocol v2 → items to score, and scores → a tensor.

Names are those of NeMo-Aligner's reward models: `sentences`, or `tokens` with `sequence_lengths`; `rewards`.
What a request claims of shape, type and size is held against what it brings before anything is made of it.
Ids stay in numpy's buffers until their rows are cut.

Shapes: B sequences, S positions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import InvalidInput
from fairlead.types import RewardInfo, ScoreItem, TokenPair, WholeText

SENTENCES, TOKENS, LENGTHS, REWARDS = "sentences", "tokens", "sequence_lengths", "rewards"
DATATYPES = {SENTENCES: "BYTES", TOKENS: "INT64", LENGTHS: "INT64", REWARDS: "FP32"}
WIDTHS = {SENTENCES: 1, TOKENS: -1, LENGTHS: 1, REWARDS: 1}
"""Second dimension of each tensor, whose first is B; −1 is any."""

_CONTENTS = {"BYTES": "bytes_contents", "INT64": "int64_contents"}
_INPUTS = f"`{SENTENCES}`, or `{TOKENS}` and `{LENGTHS}`"


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An input as it came; its name, type and number of dimensions are right."""

    name: str
    rows: int
    columns: int
    raw: bytes | None
    contents: Any

    @property
    def field(self) -> str:
        return f"inputs.{self.name}"

    def error(self, *, got: object, allowed: str, index: int | None = None) -> InvalidInput:
        return InvalidInput(self.field, index=index, got=got, allowed=allowed)


def read_items(request: Any, info: RewardInfo, *, max_items: int) -> list[ScoreItem]:  # noqa: ANN401
    """What a ModelInferRequest asks to score.

    Args:
        request: the message.
        info: of the model; says which ids there are and how many of them fit.
        max_items: B at most.

    Raises:
        InvalidInput: a tensor is missing, unknown or twice there, or is not what it claims to be.
    """
    tensors = _tensors(request)
    if not tensors:
        raise InvalidInput("inputs", got="none", allowed=_INPUTS)
    first = next(iter(tensors.values()))
    if first.rows > max_items:
        raise first.error(got=f"{first.rows} rows", allowed=f"at most {max_items}")
    if set(tensors) == {SENTENCES}:
        return [WholeText(text) for text in _texts(first)]
    if set(tensors) != {TOKENS, LENGTHS}:
        raise InvalidInput("inputs", got=", ".join(sorted(tensors)), allowed=_INPUTS)
    tokens, lengths = tensors[TOKENS], tensors[LENGTHS]
    if tokens.rows != lengths.rows:
        raise lengths.error(
            got=f"{lengths.rows} rows for {tokens.rows} of `{TOKENS}`", allowed="one for each"
        )
    return _rows(tokens, lengths, info)


def check_outputs(request: Any) -> None:  # noqa: ANN401
    """Holds the outputs that a ModelInferRequest asks for against the one that there is; none means all.

    Raises:
        InvalidInput: for another output, the same twice, or a way of sending it that is not offered.
    """
    for index, output in enumerate(request.outputs):
        if output.name != REWARDS or index:
            got = output.name if output.name != REWARDS else f"`{REWARDS}` twice"
            raise InvalidInput("outputs", index=index, got=got, allowed=f"`{REWARDS}` once")
        for name in output.parameters:
            if name == "classification" or name.startswith("shared_memory"):
                raise InvalidInput(f"outputs.{REWARDS}.parameters", got=name, allowed="the tensor itself")


def raw_rewards(scores: Sequence[float]) -> bytes:
    """The tensor `rewards`, FP32 [B, 1], little-endian."""
    return np.asarray(scores, dtype="<f4").tobytes()


def _tensors(request: Any) -> dict[str, _Tensor]:  # noqa: ANN401
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidInput(
            "raw_input_contents",
            got=f"{len(raw)} for {len(request.inputs)} inputs",
            allowed="one for each input",
        )
    found: dict[str, _Tensor] = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name not in (SENTENCES, TOKENS, LENGTHS):
            raise InvalidInput("inputs", index=index, got=tensor.name, allowed=_INPUTS)
        if tensor.name in found:
            raise InvalidInput("inputs", index=index, got=f"`{tensor.name}` twice", allowed="each once")
        found[tensor.name] = _tensor(tensor, raw[index] if raw else None)
    return found


def _tensor(tensor: Any, raw: bytes | None) -> _Tensor:  # noqa: ANN401
    name, shape, datatype = tensor.name, list(tensor.shape), DATATYPES[tensor.name]
    field = f"inputs.{name}"
    if tensor.datatype != datatype:
        raise InvalidInput(f"{field}.datatype", got=tensor.datatype, allowed=datatype)
    if len(shape) != 2 or min(shape) < 1 or WIDTHS[name] not in (-1, shape[1]):
        width = "S" if WIDTHS[name] < 0 else WIDTHS[name]
        raise InvalidInput(f"{field}.shape", got=shape[:8], allowed=f"[B, {width}], each at least 1")
    for parameter in tensor.parameters:
        if parameter.startswith("shared_memory"):
            raise InvalidInput(
                f"{field}.parameters", got=parameter, allowed="contents that the request holds"
            )
    if raw is not None and tensor.HasField("contents"):
        raise InvalidInput(field, got="contents beside raw_input_contents", allowed="one of them")
    if raw is None:
        kinds = [kind.name for kind, _ in tensor.contents.ListFields()]
        if kinds != [_CONTENTS[datatype]]:
            got = ", ".join(kinds) or "no contents"
            raise InvalidInput(field, got=got, allowed=f"raw_input_contents or {_CONTENTS[datatype]}")
    return _Tensor(name, shape[0], shape[1], raw, tensor.contents)


def _texts(tensor: _Tensor) -> list[str]:
    if tensor.raw is None:
        elements = list(tensor.contents.bytes_contents)
        if len(elements) != tensor.rows:
            raise tensor.error(got=f"{len(elements)} elements", allowed=f"{tensor.rows}, by its shape")
    else:
        elements = _elements(tensor, tensor.raw)
    texts = []
    for index, element in enumerate(elements):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError as error:
            got = f"a byte that is none at position {error.start}"
            raise tensor.error(index=index, got=got, allowed="UTF-8") from None
    return texts


def _elements(tensor: _Tensor, raw: bytes) -> list[bytes]:
    """Each element has its length before it: four bytes, little-endian."""
    elements, start = [], 0
    for index in range(tensor.rows):
        if start + 4 > len(raw):
            raise tensor.error(got=f"{index} elements", allowed=f"{tensor.rows}, by its shape")
        (size,) = struct.unpack_from("<I", raw, start)
        start += 4
        if start + size > len(raw):
            got = f"a length of {size} bytes where {len(raw) - start} follow"
            raise tensor.error(index=index, got=got, allowed="the length of the element")
        elements.append(raw[start : start + size])
        start += size
    if start != len(raw):
        raise tensor.error(got=f"{len(raw) - start} bytes behind the last element", allowed="none")
    return elements


def _integers(tensor: _Tensor) -> NDArray[np.int64]:
    """[rows, columns]."""
    count = tensor.rows * tensor.columns
    if tensor.raw is None:
        found = len(tensor.contents.int64_contents)
        if found != count:
            raise tensor.error(got=f"{found} numbers", allowed=f"{count}, by its shape")
        numbers = np.array(tensor.contents.int64_contents, dtype=np.int64)
    else:
        if len(tensor.raw) != 8 * count:
            raise tensor.error(got=f"{len(tensor.raw)} bytes", allowed=f"{8 * count}, by its shape")
        numbers = np.frombuffer(tensor.raw, dtype="<i8")
    return numbers.reshape(tensor.rows, tensor.columns)


def _rows(tokens: _Tensor, lengths: _Tensor, info: RewardInfo) -> list[ScoreItem]:
    lengths_B = _integers(lengths)[:, 0]
    tokens_BS = _integers(tokens)
    longest = min(tokens.columns, info.model.max_sequence_tokens)
    bad_B = np.flatnonzero((lengths_B < 1) | (lengths_B > longest))
    if bad_B.size:
        row = int(bad_B[0])
        raise lengths.error(index=row, got=int(lengths_B[row]), allowed=f"from 1 to {longest}")
    size = info.model.vocabulary_size
    real_BS = np.arange(tokens.columns) < lengths_B[:, None]
    bad_N = np.argwhere(real_BS & ((tokens_BS < 0) | (tokens_BS >= size)))
    if bad_N.size:
        row, position = (int(number) for number in bad_N[0])
        got = f"{tokens_BS[row, position]} at position {position}"
        raise tokens.error(index=row, got=got, allowed=f"ids from 0 to {size - 1}")
    return [
        TokenPair((), tuple(row[:length].tolist())) for row, length in zip(tokens_BS, lengths_B, strict=True)
    ]
