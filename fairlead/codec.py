"""protobuf ↔ types: the only place where messages are built or taken apart field by field.

Decoding checks structure (which oneof is set, known enum values, schema version); whether a value is
allowed is for the service that knows its model's limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError

from fairlead.errors import CorruptData, InvalidInput, SchemaTooNew
from fairlead.types import (
    Completion,
    DeadLetter,
    FinishReason,
    Message,
    ModelInfo,
    Outcome,
    Priority,
    PromptTask,
    Rollout,
    SamplingParams,
    ScoreItem,
    Scores,
    TextPair,
    TokenPair,
    VersionSpan,
    WeightVersion,
)
from fairlead.v1 import reward_service_pb2, rollout_pb2, tokens_pb2

SCHEMA_VERSION = 1
"""Version of `PromptTask` and `Outcome` that this code writes, and the newest that it reads."""

_FINISH_TO_PB = {
    None: tokens_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: tokens_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: tokens_pb2.FINISH_REASON_LENGTH,
}
_FINISH_FROM_PB = {int(value): reason for reason, value in _FINISH_TO_PB.items()}


def version_to_pb(version: WeightVersion) -> tokens_pb2.WeightVersion:
    """WeightVersion → message."""
    return tokens_pb2.WeightVersion(incarnation=version.incarnation, update=version.update)


def version_from_pb(message: tokens_pb2.WeightVersion) -> WeightVersion:
    """Message → WeightVersion."""
    return WeightVersion(message.incarnation, message.update)


def sampling_to_pb(sampling: SamplingParams) -> tokens_pb2.SamplingParams:
    """SamplingParams → message."""
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
    """Message → SamplingParams."""
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
    """Completion → message."""
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
    """Message → Completion.

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
    """ModelInfo → message."""
    return tokens_pb2.ModelInfo(
        model_id=info.model_id,
        tokenizer_fingerprint=info.tokenizer_fingerprint,
        vocabulary_size=info.vocabulary_size,
        max_sequence_tokens=info.max_sequence_tokens,
        dtype=info.dtype,
    )


def model_info_from_pb(message: tokens_pb2.ModelInfo) -> ModelInfo:
    """Message → ModelInfo."""
    return ModelInfo(
        model_id=message.model_id,
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        vocabulary_size=message.vocabulary_size,
        max_sequence_tokens=message.max_sequence_tokens,
        dtype=message.dtype,
    )


def score_item_to_pb(item: ScoreItem) -> reward_service_pb2.ScoreItem:
    """TextPair or TokenPair → message."""
    if isinstance(item, TextPair):
        return reward_service_pb2.ScoreItem(
            text=reward_service_pb2.TextPair(
                prompt=item.prompt, response=item.response, messages=_messages_to_pb(item.messages)
            )
        )
    return reward_service_pb2.ScoreItem(
        tokens=reward_service_pb2.TokenPair(
            prompt_token_ids=item.prompt_token_ids, response_token_ids=item.response_token_ids
        )
    )


def score_items_from_pb(messages: Sequence[reward_service_pb2.ScoreItem]) -> list[ScoreItem]:
    """Messages → items.

    Raises:
        InvalidInput: if an item holds neither text nor tokens.
    """
    items: list[ScoreItem] = []
    for index, message in enumerate(messages):
        content = message.WhichOneof("content")
        if content == "text":
            text = message.text
            items.append(TextPair(text.prompt, text.response, _messages_from_pb(text.messages)))
        elif content == "tokens":
            items.append(
                TokenPair(tuple(message.tokens.prompt_token_ids), tuple(message.tokens.response_token_ids))
            )
        else:
            raise InvalidInput("items", index=index, got="nothing", allowed="text or tokens")
    return items


_PRIORITY_TO_PB = {
    Priority.ONLINE: reward_service_pb2.SCORE_PRIORITY_ONLINE,
    Priority.BULK: reward_service_pb2.SCORE_PRIORITY_BULK,
}


def priority_to_pb(priority: Priority) -> reward_service_pb2.ScorePriority.ValueType:
    """Priority → message."""
    return _PRIORITY_TO_PB[priority]


def priority_from_pb(value: int) -> Priority:
    """Message → Priority; not set means online.

    Raises:
        InvalidInput: if the number is none that this version knows.
    """
    found = {int(number): priority for priority, number in _PRIORITY_TO_PB.items()} | {0: Priority.ONLINE}
    if value not in found:
        raise InvalidInput("priority", got=value, allowed=f"one of {sorted(found)}")
    return found[value]


def scores_to_pb(scores: Scores) -> reward_service_pb2.ScoreResponse:
    """Scores → message."""
    return reward_service_pb2.ScoreResponse(
        scores=scores.scores,
        model_version=scores.model_version,
        num_tokens=scores.num_tokens,
        queue_seconds=scores.queue_seconds,
        compute_seconds=scores.compute_seconds,
        calibration_temperature=scores.calibration_temperature,
    )


def scores_from_pb(message: reward_service_pb2.ScoreResponse) -> Scores:
    """Message → Scores."""
    return Scores(
        scores=tuple(message.scores),
        model_version=message.model_version,
        num_tokens=tuple(message.num_tokens),
        queue_seconds=message.queue_seconds,
        compute_seconds=message.compute_seconds,
        calibration_temperature=message.calibration_temperature,
    )


def _messages_to_pb(messages: Sequence[Message]) -> list[tokens_pb2.Message]:
    return [tokens_pb2.Message(role=message.role, content=message.content) for message in messages]


def _messages_from_pb(messages: Iterable[tokens_pb2.Message]) -> tuple[Message, ...]:
    return tuple(Message(message.role, message.content) for message in messages)


def _task_to_pb(task: PromptTask) -> rollout_pb2.PromptTask:
    return rollout_pb2.PromptTask(
        schema_version=SCHEMA_VERSION,
        task_id=task.task_id,
        prompt_token_ids=task.prompt_token_ids,
        prompt_text=task.prompt_text,
        sampling=sampling_to_pb(task.sampling),
        min_version=version_to_pb(task.min_version),
        messages=_messages_to_pb(task.messages),
    )


def _task_from_pb(message: rollout_pb2.PromptTask) -> PromptTask:
    _check_schema("prompt task", message.schema_version)
    return PromptTask(
        task_id=message.task_id,
        prompt_token_ids=tuple(message.prompt_token_ids),
        prompt_text=message.prompt_text,
        sampling=sampling_from_pb(message.sampling),
        min_version=version_from_pb(message.min_version),
        messages=_messages_from_pb(message.messages),
    )


def encode_task(task: PromptTask) -> bytes:
    """PromptTask → bytes."""
    return _task_to_pb(task).SerializeToString()


def decode_task(payload: bytes) -> PromptTask:
    """Bytes → PromptTask.

    Raises:
        CorruptData: if the bytes are not a prompt task.
        SchemaTooNew: if a newer version of fairlead wrote them.
    """
    message = rollout_pb2.PromptTask()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise CorruptData(f"not a prompt task ({len(payload)} bytes): {error}") from error
    return _task_from_pb(message)


def encode_outcome(outcome: Outcome) -> bytes:
    """Outcome → bytes."""
    message = rollout_pb2.Outcome(
        schema_version=SCHEMA_VERSION,
        task=_task_to_pb(outcome.task),
        worker=outcome.worker,
        deliveries=outcome.deliveries,
        failures=outcome.failures,
    )
    match outcome.result:
        case Rollout() as rollout:
            message.rollout.CopyFrom(
                rollout_pb2.Rollout(
                    completion=completion_to_pb(rollout.completion),
                    score=rollout.score,
                    reward_version=rollout.reward_version,
                    reference_logprobs=rollout.reference_logprobs,
                    scored_as_text=rollout.scored_as_text,
                    generate_seconds=rollout.generate_seconds,
                    score_seconds=rollout.score_seconds,
                )
            )
        case DeadLetter() as letter:
            message.dead_letter.CopyFrom(rollout_pb2.DeadLetter(reason=letter.reason, detail=letter.detail))
    return message.SerializeToString()


def decode_outcome(payload: bytes) -> Outcome:
    """Bytes → Outcome.

    Raises:
        CorruptData: if the bytes are not an outcome, or its parts differ in length.
        SchemaTooNew: if a newer version of fairlead wrote them.
    """
    message = rollout_pb2.Outcome()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise CorruptData(f"not an outcome ({len(payload)} bytes): {error}") from error
    _check_schema("outcome", message.schema_version)
    result: Rollout | DeadLetter
    kind = message.WhichOneof("result")
    if kind == "rollout":
        result = _rollout_from_pb(message.rollout)
    elif kind == "dead_letter":
        result = DeadLetter(message.dead_letter.reason, message.dead_letter.detail)
    else:
        raise CorruptData(f"outcome of task {message.task.task_id} has no result")
    return Outcome(
        task=_task_from_pb(message.task),
        result=result,
        worker=message.worker,
        deliveries=message.deliveries,
        failures=message.failures,
    )


def _rollout_from_pb(message: rollout_pb2.Rollout) -> Rollout:
    completion = completion_from_pb(message.completion)
    if len(message.reference_logprobs) != len(completion.token_ids):
        raise CorruptData(
            f"rollout has {len(completion.token_ids)} token ids and "
            f"{len(message.reference_logprobs)} reference log-probs"
        )
    return Rollout(
        completion=completion,
        score=message.score,
        reward_version=message.reward_version,
        reference_logprobs=tuple(message.reference_logprobs),
        scored_as_text=message.scored_as_text,
        generate_seconds=message.generate_seconds,
        score_seconds=message.score_seconds,
    )


def _check_schema(what: str, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"{what} has schema version {version}, this fairlead reads up to {SCHEMA_VERSION}: upgrade it"
        )
    if version < 1:
        raise CorruptData(f"{what} has schema version {version}")
