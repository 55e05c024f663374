"""Prompt tasks and outcomes ↔ bytes of rollout.proto in the queue, with a schema version and a checksum."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from fairlead.codec.checksum import with_checksum, without_checksum
from fairlead.codec.tokens import (
    completion_from_pb,
    completion_to_pb,
    messages_from_pb,
    messages_to_pb,
    sampling_from_pb,
    sampling_to_pb,
    version_from_pb,
    version_to_pb,
)
from fairlead.errors import CorruptData, SchemaTooNew
from fairlead.types import DeadLetter, Outcome, PromptTask, Rollout
from fairlead.v1 import rollout_pb2

SCHEMA_VERSION = 1
"""Version of `PromptTask` and `Outcome` that this code writes, and the newest version that it reads."""


def _task_to_pb(task: PromptTask) -> rollout_pb2.PromptTask:
    return rollout_pb2.PromptTask(
        schema_version=SCHEMA_VERSION,
        task_id=task.task_id,
        prompt_token_ids=task.prompt_token_ids,
        prompt_text=task.prompt_text,
        sampling=sampling_to_pb(task.sampling),
        min_version=version_to_pb(task.min_version),
        messages=messages_to_pb(task.messages),
    )


def _task_from_pb(message: rollout_pb2.PromptTask) -> PromptTask:
    _check_schema("prompt task", message.schema_version)
    return PromptTask(
        task_id=message.task_id,
        prompt_token_ids=tuple(message.prompt_token_ids),
        prompt_text=message.prompt_text,
        sampling=sampling_from_pb(message.sampling),
        min_version=version_from_pb(message.min_version),
        messages=messages_from_pb(message.messages),
    )


def encode_task(task: PromptTask) -> bytes:
    """Return the task as bytes with a checksum."""
    return with_checksum(_task_to_pb(task).SerializeToString())


def decode_task(payload: bytes) -> PromptTask:
    """Return the task in bytes of the queue.

    Raises:
        CorruptData: if the bytes are damaged or not a prompt task.
        SchemaTooNew: if a newer version of fairlead wrote them.
    """
    message = rollout_pb2.PromptTask()
    try:
        message.ParseFromString(without_checksum(payload, what="a prompt task"))
    except DecodeError as error:
        raise CorruptData(f"not a prompt task ({len(payload)} bytes): {error}") from error
    return _task_from_pb(message)


def encode_outcome(outcome: Outcome) -> bytes:
    """Return the outcome as bytes with a checksum."""
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
    return with_checksum(message.SerializeToString())


def decode_outcome(payload: bytes) -> Outcome:
    """Return the outcome in bytes of the queue.

    Raises:
        CorruptData: if the bytes are damaged or not an outcome, or its parts differ in length.
        SchemaTooNew: if a newer version of fairlead wrote them.
    """
    message = rollout_pb2.Outcome()
    try:
        message.ParseFromString(without_checksum(payload, what="an outcome"))
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
    # None if the trainer computes them.
    if message.reference_logprobs and len(message.reference_logprobs) != len(completion.token_ids):
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
            f"{what} has schema version {version}; this fairlead reads up to {SCHEMA_VERSION}: upgrade it"
        )
    if version < 1:
        raise CorruptData(f"{what} has schema version {version}")
