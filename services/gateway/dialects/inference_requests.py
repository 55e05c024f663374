"""Inference requests and answers of the Open Inference Protocol over HTTP: tensors → items → tensors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from fastapi import Response
from fastapi.responses import JSONResponse

from fairlead.errors import InvalidInput
from fairlead.types import ScoreItem, Scores, TokenPair, WholeText
from services.gateway.body import parse_json
from services.gateway.dialects.tensors import Tensor
from services.runtime.version_numbers import number_of

HEADER_LENGTH = "inference-header-content-length"
"""How many bytes of a body are its JSON; tensors follow."""


def items_of(tensors: dict[str, Tensor]) -> list[ScoreItem]:
    """What a request's inputs ask to score.

    Raises:
        InvalidInput: for inputs that the model does not have, or that do not fit one another.
    """
    names = set(tensors)
    if names == {"sentences"}:
        return [WholeText(text) for text in _column(tensors["sentences"], "BYTES").texts]
    if names == {"tokens", "sequence_lengths"}:
        return _token_items(tensors["tokens"], tensors["sequence_lengths"])
    raise InvalidInput(
        "inputs",
        got=", ".join(sorted(names))[:80],
        allowed="`sentences`, or `tokens` and `sequence_lengths`",
    )


def _token_items(tokens: Tensor, lengths: Tensor) -> list[ScoreItem]:
    if tokens.numbers is None or len(tokens.shape) != 2:
        raise InvalidInput(
            "inputs.tokens", got=f"{tokens.datatype} {list(tokens.shape)}", allowed="integers [B, S]"
        )
    lengths = _column(lengths, "integers")
    assert lengths.numbers is not None
    rows, width = tokens.shape
    if len(lengths.numbers) != rows:
        raise InvalidInput(
            "inputs.sequence_lengths", got=f"{len(lengths.numbers)} lengths", allowed=f"{rows}, one per row"
        )
    bad = np.flatnonzero((lengths.numbers < 1) | (lengths.numbers > width))
    if len(bad):
        place = int(bad[0])
        raise InvalidInput(
            "inputs.sequence_lengths",
            index=place,
            got=int(lengths.numbers[place]),
            allowed=f"from 1 to {width}, the width of `tokens`",
        )
    table = tokens.numbers.reshape(rows, width)
    return [
        TokenPair((), tuple(row[:length].tolist()))
        for row, length in zip(table, lengths.numbers.tolist(), strict=True)
    ]


def _column(tensor: Tensor, kind: str) -> Tensor:
    """A tensor of one element a row: [B, 1], or [B]."""
    is_bytes = tensor.datatype == "BYTES"
    if is_bytes != (kind == "BYTES") or tensor.shape[1:] not in ((), (1,)) or not tensor.shape:
        raise InvalidInput(
            f"inputs.{tensor.name}", got=f"{tensor.datatype} {list(tensor.shape)}", allowed=f"{kind} [B, 1]"
        )
    return tensor


def split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], bytes]:
    """The JSON of a request, and the bytes behind it."""
    size = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit()) or int(header_length) > len(body):
            raise InvalidInput(
                "Inference-Header-Content-Length", got=header_length, allowed=f"from 0 to {len(body)}"
            )
        size = int(header_length)
    request = parse_json(body[:size])
    if not isinstance(request, dict):
        raise InvalidInput("body", got=type(request).__name__, allowed="an inference request")
    return request, body[size:]


def answer(asked: dict[str, Any], scores: Scores, *, name: str, binary: bool) -> Response:
    """The response to an inference request."""
    output: dict[str, Any] = {"name": "rewards", "datatype": "FP32", "shape": [len(scores.scores), 1]}
    content: dict[str, Any] = {
        "model_name": name,
        "model_version": number_of(scores.model_version),
        "parameters": {
            "model_version": scores.model_version,
            "queue_seconds": scores.queue_seconds,
            "compute_seconds": scores.compute_seconds,
            "num_tokens": sum(scores.num_tokens),
            "calibration_temperature": scores.calibration_temperature,
        },
        "outputs": [output],
    }
    if isinstance(asked.get("id"), str):
        content["id"] = asked["id"]
    if not binary:
        output["data"] = list(scores.scores)
        return JSONResponse(content)
    raw = np.array(scores.scores, dtype="<f4").tobytes()
    output["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps(content).encode()
    headers = {HEADER_LENGTH: str(len(head))}
    return Response(head + raw, media_type="application/octet-stream", headers=headers)


def wants_binary(asked: dict[str, Any]) -> bool:
    """What the only output asks for, else what the request does.

    Raises:
        InvalidInput: it asks for other outputs, or in shared memory or classes.
    """
    parameters = asked.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidInput("parameters", got=type(parameters).__name__, allowed="an object")
    binary = parameters.get("binary_data_output", False)
    outputs = asked.get("outputs") or [{"name": "rewards"}]
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        raise InvalidInput("outputs", got="others", allowed="`rewards`")
    if outputs[0].get("name") != "rewards":
        raise InvalidInput("outputs", index=0, got=str(outputs[0].get("name"))[:80], allowed="`rewards`")
    own = outputs[0].get("parameters", {})
    if not isinstance(own, dict) or {"shared_memory_region", "classification"} & set(own):
        raise InvalidInput("outputs", index=0, got="parameters", allowed="`binary_data` alone")
    return bool(own.get("binary_data", binary))


def number(asked: dict[str, Any], name: str) -> int:
    """A parameter of the request; 0 if it is not there."""
    value = asked.get("parameters", {}).get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InvalidInput(f"parameters.{name}", got=type(value).__name__, allowed="an integer from 0 up")
    return value
