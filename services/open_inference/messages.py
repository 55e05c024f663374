"""How the reward model looks in the Open Inference Protocol: metadata, configuration, statistics, answers.

Messages of tritonclient, built; nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

from fairlead.types import RewardInfo, Scores
from services.open_inference.statistics import Spans, VersionStatistics
from services.reward import tensors
from services.runtime.version_numbers import number_of

EXTENSIONS = ("model_configuration", "model_repository", "statistics", "parameters", "schedule_policy")
"""What is offered beyond the protocol's core."""

_INPUTS = (tensors.SENTENCES, tensors.TOKENS, tensors.LENGTHS)
_TYPES = {
    "BYTES": model_config_pb2.TYPE_STRING,
    "INT64": model_config_pb2.TYPE_INT64,
    "FP32": model_config_pb2.TYPE_FP32,
}


def response(request: Any, scores: Scores, *, name: str) -> Any:  # noqa: ANN401
    """The answer to a ModelInferRequest; typed contents are answered by such, raw ones by raw ones."""
    version = number_of(scores.model_version)
    message = pb.ModelInferResponse(model_name=name, model_version=version, id=request.id)
    shape = [len(scores.scores), 1]
    output = message.outputs.add(
        name=tensors.REWARDS, datatype=tensors.DATATYPES[tensors.REWARDS], shape=shape
    )
    if request.raw_input_contents:
        message.raw_output_contents.append(tensors.raw_rewards(scores.scores))
    else:
        output.contents.fp32_contents.extend(scores.scores)
    message.parameters["queue_seconds"].double_param = scores.queue_seconds
    message.parameters["compute_seconds"].double_param = scores.compute_seconds
    message.parameters["model_version"].string_param = scores.model_version
    message.parameters["num_tokens"].int64_param = sum(scores.num_tokens)
    if scores.calibration_temperature:
        message.parameters["calibration_temperature"].double_param = scores.calibration_temperature
    return message


def metadata(name: str, *, versions: Sequence[str]) -> Any:  # noqa: ANN401
    """ModelMetadataResponse."""
    tensor = pb.ModelMetadataResponse.TensorMetadata

    def of(one: str) -> Any:  # noqa: ANN401
        return tensor(name=one, datatype=tensors.DATATYPES[one], shape=[-1, tensors.WIDTHS[one]])

    return pb.ModelMetadataResponse(
        name=name,
        versions=[number_of(version) for version in versions],
        platform="fairlead",
        inputs=[of(one) for one in _INPUTS],
        outputs=[of(tensors.REWARDS)],
    )


def config(name: str, *, max_batch_size: int, info: RewardInfo) -> Any:  # noqa: ANN401
    """ModelConfig; its dimensions are without B, and its inputs optional, as either kind will do."""
    message = model_config_pb2.ModelConfig(
        name=name, platform="fairlead", backend="fairlead", max_batch_size=max_batch_size
    )
    for one in _INPUTS:
        kind = _TYPES[tensors.DATATYPES[one]]
        message.input.add(name=one, data_type=kind, dims=[tensors.WIDTHS[one]], optional=True)
    message.output.add(name=tensors.REWARDS, data_type=model_config_pb2.TYPE_FP32, dims=[1])
    message.dynamic_batching.SetInParent()
    told = {
        "model_id": info.model.model_id,
        "model_version": info.model_version,
        "tokenizer_fingerprint": info.model.tokenizer_fingerprint,
        "vocabulary_size": str(info.model.vocabulary_size),
        "max_sequence_tokens": str(info.model.max_sequence_tokens),
        "calibration_temperature": str(info.calibration_temperature),
    }
    for key, value in told.items():
        message.parameters[key].string_value = value
    return message


def statistics(name: str, version: str, counts: VersionStatistics) -> Any:  # noqa: ANN401
    """ModelStatistics of one version. An execution is a request here, whatever shared its batches."""

    def spans(found: Spans) -> Any:  # noqa: ANN401
        return pb.StatisticDuration(count=found.count, ns=found.nanoseconds)

    return pb.ModelStatistics(
        name=name,
        version=number_of(version),
        last_inference=counts.last_milliseconds,
        inference_count=counts.sequences,
        execution_count=counts.success.count,
        inference_stats=pb.InferStatistics(
            success=spans(counts.success),
            fail=spans(counts.fail),
            queue=spans(counts.queue),
            compute_input=spans(counts.rest),
            compute_infer=spans(counts.compute),
            compute_output=pb.StatisticDuration(count=counts.success.count),
        ),
    )
