"""The framing of inference requests and responses over HTTP: JSON, or JSON followed by binary tensors.

https://github.com/kserve/open-inference-protocol, and Triton's extension for binary data. What the tensors
mean is decided in services/open_inference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse

from fairlead.errors import InvalidInput
from fairlead.types import Scores
from services.open_inference import messages, tensors
from services.open_inference.model import InferenceRequest
from services.open_inference.tensors import InputTensor
from services.open_inference.versions import number_of
from services.runtime.http.body import read_json
from services.runtime.http.json_limits import BodyLimits

HEADER_LENGTH = "inference-header-content-length"
"""Header with the number of bytes of a body that are JSON; binary tensors follow."""
_MAX_TENSORS = 16
_MAX_DIMENSIONS = 8
_MAX_DIGITS = 19
"""Digits of a 64-bit number."""


def body_limits(
    *, max_items: int, max_sequence_tokens: int, max_request_tokens: int, max_text_bytes: int
) -> BodyLimits:
    """Return what the JSON of a request may contain.

    Args:
        max_items: largest B.
        max_sequence_tokens: longest sequence.
        max_request_tokens: tokens of all sequences; as many again may be padding.
        max_text_bytes: size of a text.
    """
    numbers = min(max_items * max_sequence_tokens, 2 * max_request_tokens) + 2 * max_items
    # Where few rows are too many, services/open_inference refuses them, in the same words as over gRPC.
    rows = 4 * max_items
    return BodyLimits(
        entries={"inputs": _MAX_TENSORS, "outputs": _MAX_TENSORS, "inputs[].data": rows},
        numbers={"inputs[].shape": _MAX_DIMENSIONS},
        max_text_bytes=max_text_bytes,
        max_values=2 * rows + 512,
        max_numbers=numbers,
    )


async def split(
    body: bytearray, header_length: str | None, limits: BodyLimits
) -> tuple[dict[str, Any], memoryview]:
    """Return the JSON of a request, and the bytes after it.

    Raises:
        InvalidInput: the header is not valid, the JSON exceeds a limit or is not an object.
    """
    size = len(body)
    if header_length is not None:
        # Bounded before it is converted: `int` refuses thousands of digits with an error of its own.
        digits = header_length.isascii() and header_length.isdigit() and len(header_length) <= _MAX_DIGITS
        size = int(header_length) if digits else -1
        if not 0 <= size <= len(body):
            raise InvalidInput(
                "Inference-Header-Content-Length", got=header_length[:80], allowed=f"from 0 to {len(body)}"
            )
    request = await read_json(body if size == len(body) else body[:size], limits)
    if not isinstance(request, dict):
        raise InvalidInput("body", got=_kind(request), allowed="an inference request")
    return request, memoryview(body)[size:]


def read(request: Mapping[str, Any], binary: memoryview) -> InferenceRequest:
    """Take an inference request out of its JSON and the bytes after it.

    Raises:
        InvalidInput: for the first part of a wrong JSON type, or bytes that belong to no tensor.
    """
    found = InferenceRequest(
        inputs=_inputs(request, binary),
        outputs=[(name, tuple(parameters)) for name, parameters in _outputs(request)],
        parameters=_object(request, "parameters"),
    )
    wants_binary(request)  # refuses what `response` could only refuse after the scores were computed
    return found


def wants_binary(request: Mapping[str, Any]) -> bool:
    """Return whether a binary tensor is asked for, by the output or else by the whole request.

    Raises:
        InvalidInput: the parameter is not a boolean.
    """
    places = {"parameters.binary_data_output": _object(request, "parameters").get("binary_data_output")}
    for index, (_, parameters) in enumerate(_outputs(request)):
        places[f"outputs[{index}].parameters.binary_data"] = parameters.get("binary_data")
    binary = False
    for place, value in places.items():
        if value is not None and not isinstance(value, bool):
            raise InvalidInput(place, got=_kind(value), allowed="true or false")
        binary = binary if value is None else value
    return binary


def response(request: Mapping[str, Any], scores: Scores, *, name: str, binary: bool) -> Response:
    """Return the response to an inference request."""
    output: dict[str, Any] = {
        "name": tensors.REWARDS,
        "datatype": tensors.DATATYPES[tensors.REWARDS],
        "shape": [len(scores.scores), 1],
    }
    content: dict[str, Any] = {
        "model_name": name,
        "model_version": number_of(scores.model_version),
        "parameters": messages.response_parameters(scores),
        "outputs": [output],
    }
    if isinstance(request.get("id"), str):
        content["id"] = request["id"]
    if not binary:
        output["data"] = list(scores.scores)
        return JSONResponse(content)
    raw = tensors.raw_rewards(scores.scores)
    output["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps(content).encode()
    headers = {HEADER_LENGTH: str(len(head))}
    return Response(head + raw, media_type="application/octet-stream", headers=headers)


def _inputs(request: Mapping[str, Any], binary: memoryview) -> list[InputTensor]:
    entries = request.get("inputs")
    if not isinstance(entries, list):
        raise InvalidInput("inputs", got=_kind(entries), allowed="a list of tensors")
    found: list[InputTensor] = []
    offset = 0
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InvalidInput("inputs", index=index, got=_kind(entry), allowed="a tensor")
        size = _binary_size(entry, index)
        raw: memoryview | None = None
        if size is not None:
            raw = binary[offset : offset + size]
            if len(raw) < size:
                got = f"{len(raw)} bytes of data"
                raise InvalidInput(
                    "inputs", index=index, got=got, allowed=f"{size}, the value of binary_data_size"
                )
            offset += size
        found.append(_input_tensor(entry, raw, index))
    if offset != len(binary):
        got = f"{len(binary) - offset} bytes after the last tensor"
        raise InvalidInput("body", got=got, allowed="none")
    return found


def _input_tensor(entry: Mapping[str, Any], raw: memoryview | None, index: int) -> InputTensor:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidInput("inputs", index=index, got=_kind(name), allowed="a `name`")
    field = f"inputs.{name[:80]}"
    datatype = entry.get("datatype")
    if not isinstance(datatype, str):
        raise InvalidInput(f"{field}.datatype", got=_kind(datatype), allowed="the name of a type")
    shape = entry.get("shape")
    if not isinstance(shape, list):
        raise InvalidInput(f"{field}.shape", got=_kind(shape), allowed="a list of dimensions")
    for dimension in shape:
        if not isinstance(dimension, int) or isinstance(dimension, bool):
            raise InvalidInput(f"{field}.shape", got=_kind(dimension), allowed="whole numbers")
    parameters = tuple(_object(entry, "parameters"))
    reads_values = raw is None and "shared_memory_region" not in parameters
    values = _values(entry.get("data"), datatype, field) if reads_values else []
    return InputTensor(name, datatype, tuple(shape), parameters, raw, values)


def _binary_size(entry: Mapping[str, Any], index: int) -> int | None:
    size = _object(entry, "parameters").get("binary_data_size")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
        raise InvalidInput("inputs", index=index, got=f"binary_data_size {size!r}"[:80], allowed="0 or more")
    return size


def _values(data: object, datatype: str, field: str) -> list[Any]:
    values = _flat(data, field)
    if datatype == "BYTES":
        wanted: type = str
        allowed = "a text"
    elif datatype in tensors.INTEGERS:
        wanted = int
        allowed = "a whole number"
    else:
        return []
    for position, value in enumerate(values):
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise InvalidInput(field, index=position, got=_kind(value), allowed=allowed)
    return values


def _flat(data: object, field: str) -> list[Any]:
    """Return the elements row by row, of nested lists or of one flat list."""
    if not isinstance(data, list):
        raise InvalidInput(field, got=_kind(data), allowed="`data` as a list, or binary data")
    flat: list[Any] = []
    # The JSON parser limits the depth of nesting.
    for one in data:
        if isinstance(one, list):
            flat.extend(_flat(one, field))
        else:
            flat.append(one)
    return flat


def _outputs(request: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    entries = request.get("outputs") or []
    if not isinstance(entries, list):
        raise InvalidInput("outputs", got=_kind(entries), allowed="a list of outputs")
    found: list[tuple[str, Mapping[str, Any]]] = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            got = _kind(entry.get("name") if isinstance(entry, dict) else entry)
            raise InvalidInput("outputs", index=index, got=got, allowed="an object with a `name`")
        found.append((entry["name"], _object(entry, "parameters")))
    return found


def _object(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = entry.get(key, {})
    if not isinstance(found, dict):
        raise InvalidInput(key, got=_kind(found), allowed="an object")
    return found


def _kind(value: object) -> str:
    """Return the JSON type of a value; never its text."""
    kinds = {
        bool: "a boolean",
        int: "a whole number",
        float: "a decimal number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return "nothing" if value is None else kinds[type(value)]
