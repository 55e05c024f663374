"""Completions, sampling parameters, messages and model descriptions ↔ messages of tokens.proto."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fairlead.errors import CorruptData
from fairlead.types import (
    Completion,
    FinishReason,
    Message,
    ModelInfo,
    SamplingParams,
    VersionSpan,
    WeightVersion,
)
from fairlead.v1 import tokens_pb2

_FINISH_TO_PB = {
    None: tokens_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: tokens_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: tokens_pb2.FINISH_REASON_LENGTH,
}
_FINISH_FROM_PB = {int(value): reason for reason, value in _FINISH_TO_PB.items()}


def version_to_pb(version: WeightVersion) -> tokens_pb2.WeightVersion:
    """Return a weight version as a message."""
    return tokens_pb2.WeightVersion(incarnation=version.incarnation, update=version.update)


def version_from_pb(message: tokens_pb2.WeightVersion) -> WeightVersion:
    """Return a weight version from a message."""
    return WeightVersion(message.incarnation, message.update)


def sampling_to_pb(sampling: SamplingParams) -> tokens_pb2.SamplingParams:
    """Return sampling parameters as a message."""
    return tokens_pb2.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
        stop_token_ids=sampling.stop_token_ids,
        stop_strings=sampling.stop_strings,
        seed=sampling.seed,
    )


def sampling_from_pb(message: tokens_pb2.SamplingParams) -> SamplingParams:
    """Return sampling parameters from a message."""
    return SamplingParams(
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        max_new_tokens=message.max_new_tokens,
        stop_token_ids=tuple(message.stop_token_ids),
        stop_strings=tuple(message.stop_strings),
        seed=message.seed,
    )


def completion_to_pb(completion: Completion) -> tokens_pb2.Completion:
    """Return a completion as a message."""
    return tokens_pb2.Completion(
        token_ids=completion.token_ids,
        logprobs=completion.logprobs,
        finish_reason=_FINISH_TO_PB[completion.finish_reason],
        version_spans=[
            tokens_pb2.VersionSpan(version=version_to_pb(span.version), start=span.start, end=span.end)
            for span in completion.version_spans
        ],
        text=completion.text,
        mixed_cache=completion.mixed_cache,
    )


def completion_from_pb(message: tokens_pb2.Completion) -> Completion:
    """Return a completion from a message.

    Raises:
        CorruptData: if the finish reason is unknown or ids and log-probs differ in number.
    """
    if int(message.finish_reason) not in _FINISH_FROM_PB:
        raise CorruptData(f"completion has an unknown finish reason {int(message.finish_reason)}")
    if len(message.token_ids) != len(message.logprobs):
        raise CorruptData(
            f"completion has {len(message.token_ids)} token ids and {len(message.logprobs)} log-probs"
        )
    return Completion(
        token_ids=tuple(message.token_ids),
        logprobs=tuple(message.logprobs),
        finish_reason=_FINISH_FROM_PB[int(message.finish_reason)],
        version_spans=tuple(
            VersionSpan(version_from_pb(span.version), span.start, span.end) for span in message.version_spans
        ),
        text=message.text,
        mixed_cache=message.mixed_cache,
    )


def model_info_to_pb(info: ModelInfo) -> tokens_pb2.ModelInfo:
    """Return a description of a model as a message."""
    return tokens_pb2.ModelInfo(
        model_id=info.model_id,
        tokenizer_fingerprint=info.tokenizer_fingerprint,
        vocabulary_size=info.vocabulary_size,
        max_sequence_tokens=info.max_sequence_tokens,
        dtype=info.dtype,
    )


def model_info_from_pb(message: tokens_pb2.ModelInfo) -> ModelInfo:
    """Return a description of a model from a message."""
    return ModelInfo(
        model_id=message.model_id,
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        vocabulary_size=message.vocabulary_size,
        max_sequence_tokens=message.max_sequence_tokens,
        dtype=message.dtype,
    )


def messages_to_pb(messages: Sequence[Message]) -> list[tokens_pb2.Message]:
    """Return the messages of a conversation as protobuf messages."""
    return [tokens_pb2.Message(role=message.role, content=message.content) for message in messages]


def messages_from_pb(messages: Iterable[tokens_pb2.Message]) -> tuple[Message, ...]:
    """Return the messages of a conversation from protobuf messages."""
    return tuple(Message(message.role, message.content) for message in messages)
