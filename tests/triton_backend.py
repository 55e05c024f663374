"""Run an exported `model.py` without Triton.

Only `triton_python_backend_utils`, the module that Triton's Python backend provides, is replaced. A slow test
runs the same file in a real Triton.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class Tensor:
    """A named array."""

    name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.array


@dataclass
class TritonError(Exception):
    """An error of one request."""

    message: str
    code: int = 0
    INVALID_ARG = 3


@dataclass
class InferenceResponse:
    """The outputs of a request, or its error."""

    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None

    def of(self, name: str) -> list:
        assert self.error is None, self.error
        return next(tensor.array for tensor in self.output_tensors if tensor.name == name)[:, 0].tolist()


def utilities() -> types.ModuleType:
    """Return the module that the backend provides."""
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError, module.InferenceResponse = Tensor, TritonError, InferenceResponse
    module.get_input_tensor_by_name = lambda request, name: request.get(name)
    return module


def load(folder: Path):
    """Return the model of an exported folder, initialized as the backend does on the CPU."""
    before = sys.modules.get("triton_python_backend_utils")
    sys.modules["triton_python_backend_utils"] = utilities()
    try:
        model = runpy.run_path(str(folder / "1" / "model.py"))["TritonPythonModel"]()
    finally:
        sys.modules.pop("triton_python_backend_utils")
        if before is not None:
            sys.modules["triton_python_backend_utils"] = before
    pairs = re.findall(
        r'^parameters \{ key: (".*?") value: \{ string_value: (".*?") \} \}$',
        (folder / "config.pbtxt").read_text(),
        re.MULTILINE,
    )
    parameters = {json.loads(key): {"string_value": json.loads(value)} for key, value in pairs}
    model.initialize(
        {
            "model_config": json.dumps({"parameters": parameters}),
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
            "model_repository": str(folder),
            "model_version": "1",
        }
    )
    return model


def tokens(rows, lengths=None) -> dict[str, Tensor]:
    """Return a request with token ids."""
    width = max(map(len, rows))
    array = np.array([[*row, *[7] * (width - len(row))] for row in rows], dtype=np.int64)
    lengths = [len(row) for row in rows] if lengths is None else lengths
    return {
        "tokens": Tensor("tokens", array),
        "sequence_lengths": Tensor("sequence_lengths", np.array(lengths, dtype=np.int64).reshape(-1, 1)),
    }


def sentences(*texts: bytes) -> dict[str, Tensor]:
    """Return a request with whole texts."""
    return {"sentences": Tensor("sentences", np.array(texts, dtype=np.object_).reshape(-1, 1))}
