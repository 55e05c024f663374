"""Metadata, configuration, statistics and response parameters of the reward model, as the protocol's JSON.

The gateway sends them as they are; the gRPC servicer parses them into protobuf messages of the same fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairlead import __version__
from fairlead.types import RewardInfo, Scores
from services.open_inference import tensors
from services.open_inference.statistics import Durations, VersionStatistics
from services.open_inference.versions import number_of

EXTENSIONS = ("model_configuration", "model_repository", "statistics", "parameters", "schedule_policy")
"""Extensions of the protocol that are supported."""

_PLATFORM = "fairlead"
_CONFIG_TYPES = {"BYTES": "TYPE_STRING", "INT64": "TYPE_INT64", "FP32": "TYPE_FP32"}

Message = dict[str, Any]
"""A message of the protocol in its JSON form."""


def server_metadata(*, more_extensions: Sequence[str] = ()) -> Message:
    """Return name, version and extensions of the server."""
    return {"name": "fairlead", "version": __version__, "extensions": [*EXTENSIONS, *more_extensions]}


def metadata(name: str, *, versions: Sequence[str]) -> Message:
    """Return names, types and shapes of the model's tensors."""
    return {
        "name": name,
        "versions": [number_of(version) for version in versions],
        "platform": _PLATFORM,
        "inputs": [_tensor_metadata(tensor) for tensor in tensors.INPUTS],
        "outputs": [_tensor_metadata(tensors.REWARDS)],
    }


def config(name: str, *, max_batch_size: int, info: RewardInfo) -> Message:
    """Return Triton's ModelConfig. Dimensions are without B; inputs are optional, as one kind suffices."""
    parameters = {
        "model_id": info.model.model_id,
        "model_version": info.model_version,
        "tokenizer_fingerprint": info.model.tokenizer_fingerprint,
        "vocabulary_size": str(info.model.vocabulary_size),
        "max_sequence_tokens": str(info.model.max_sequence_tokens),
        "calibration_temperature": str(info.calibration_temperature),
    }
    return {
        "name": name,
        "platform": _PLATFORM,
        "backend": _PLATFORM,
        "max_batch_size": max_batch_size,
        "input": [_tensor_config(tensor) | {"optional": True} for tensor in tensors.INPUTS],
        "output": [_tensor_config(tensors.REWARDS)],
        "dynamic_batching": {},
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }


def statistics(name: str, version: str, counts: VersionStatistics) -> Message:
    """Return Triton's ModelStatistics of one version. An execution is a request, however it was batched."""
    none = Durations()
    durations = {
        "success": counts.success,
        "fail": counts.fail,
        "queue": counts.queue,
        "compute_input": counts.rest,
        "compute_infer": counts.compute,
        "compute_output": Durations(count=counts.success.count),
        "cache_hit": none,
        "cache_miss": none,
    }
    return {
        "name": name,
        "version": number_of(version),
        "last_inference": counts.last_milliseconds,
        "inference_count": counts.sequences,
        "execution_count": counts.success.count,
        "inference_stats": {
            key: {"count": value.count, "ns": value.nanoseconds} for key, value in durations.items()
        },
        "batch_stats": [],
    }


def index_entry(name: str, version: str, *, ready: bool) -> Message:
    """Return the entry of one version in the repository index."""
    return {
        "name": name,
        "version": number_of(version),
        "state": "READY" if ready else "UNAVAILABLE",
        "reason": "" if ready else "the reward service is not ready",
    }


def response_parameters(scores: Scores) -> dict[str, str | int | float]:
    """Return the parameters of an inference response."""
    return {
        "model_version": scores.model_version,
        "queue_seconds": scores.queue_seconds,
        "compute_seconds": scores.compute_seconds,
        "num_tokens": sum(scores.num_tokens),
        "calibration_temperature": scores.calibration_temperature,
    }


def _tensor_metadata(name: str) -> Message:
    return {"name": name, "datatype": tensors.DATATYPES[name], "shape": [-1, tensors.WIDTHS[name]]}


def _tensor_config(name: str) -> Message:
    return {
        "name": name,
        "data_type": _CONFIG_TYPES[tensors.DATATYPES[name]],
        "dims": [tensors.WIDTHS[name]],
    }
