"""gRPC requests of the Open Inference Protocol for tests."""

from __future__ import annotations

import numpy as np
from tritonclient.grpc import service_pb2 as pb

W1 = b"\x02\0\0\0w1"
"""The text `w1` as raw contents."""


def integers(*numbers: int) -> bytes:
    return np.array(numbers, dtype="<i8").tobytes()


def request(*inputs, raw=(), outputs=(), **fields) -> pb.ModelInferRequest:
    """Build a request; inputs are (name, datatype, shape[, contents])."""
    message = pb.ModelInferRequest(model_name="reward", raw_input_contents=raw, **fields)
    for name, datatype, shape, *contents in inputs:
        tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
        for content in contents:
            tensor.contents.CopyFrom(pb.InferTensorContents(**content))
    for name in outputs:
        message.outputs.add(name=name)
    return message


def tokens_of(rows, module):
    lengths = np.array([[len(row)] for row in rows], dtype=np.int64)
    padded = np.full((len(rows), int(lengths.max())), -7, dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    found = []
    for name, values in (("tokens", padded), ("sequence_lengths", lengths)):
        tensor = module.InferInput(name, list(values.shape), "INT64")
        tensor.set_data_from_numpy(values)
        found.append(tensor)
    return found
