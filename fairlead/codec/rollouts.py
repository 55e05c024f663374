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
from fairlead.types import DeadLetter, Outcome, PromptTask, Rollout, TaskResult
from fairlead.v1 import rollout_pb2

SCHEMA_VERSION = 2
"""Newest version of `PromptTask` and `Outcome` that this code reads."""
_SINGLE, _GROUPS = 1, 2
"""Versions that it writes: a reader that knows no groups would answer a task only once, so it must refuse one
with several samples; it reads the others."""
_MAX_SAMPLES = 4_096
"""Largest number of samples of a task, as in `ppo.num_samples`."""


def _task_to_pb(task: PromptTask) -> rollout_pb2.PromptTask:
    return rollout_pb2.PromptTask(
        schema_version=_schema(task),
        task_id=task.task_id,
        prompt_token_ids=task.prompt_token_ids,
        prompt_text=task.prompt_text,
        sampling=sampling_to_pb(task.sampling),
        min_version=version_to_pb(task.min_version),
        messages=messages_to_pb(task.messages),
        num_samples=task.num_samples if task.num_samples > 1 else 0,
    )


def _schema(task: PromptTask) -> int:
    return _GROUPS if task.num_samples > 1 else _SINGLE


def _task_from_pb(message: rollout_pb2.PromptTask) -> PromptTask:
    _check_schema("prompt task", message.schema_version)
    if not 0 <= message.num_samples <= _MAX_SAMPLES:
        raise CorruptData(
            f"task {message.task_id} has {message.num_samples} samples; allowed: 1 to {_MAX_SAMPLES}"
        )
    return PromptTask(
        task_id=message.task_id,
        prompt_token_ids=tuple(message.prompt_token_ids),
        prompt_text=message.prompt_text,
        sampling=sampling_from_pb(message.sampling),
        min_version=version_from_pb(message.min_version),
        messages=messages_from_pb(message.messages),
        num_samples=message.num_samples or 1,
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
    """Return the outcome as bytes with a checksum.

    Raises:
        ValueError: if it has another number of rollouts than its task has samples.
    """
    message = rollout_pb2.Outcome(
        schema_version=_schema(outcome.task),
        task=_task_to_pb(outcome.task),
        worker=outcome.worker,
        deliveries=outcome.deliveries,
        failures=outcome.failures,
    )
    result = outcome.result
    if isinstance(result, DeadLetter):
        message.dead_letter.CopyFrom(rollout_pb2.DeadLetter(reason=result.reason, detail=result.detail))
    elif len(result) != outcome.task.num_samples:
        raise ValueError(f"{len(result)} rollouts for a task of {outcome.task.num_samples} samples")
    elif len(result) == 1:
        message.rollout.CopyFrom(_rollout_to_pb(result[0]))
    else:
        message.group.rollouts.extend(map(_rollout_to_pb, result))
    return with_checksum(message.SerializeToString())


def _rollout_to_pb(rollout: Rollout) -> rollout_pb2.Rollout:
    return rollout_pb2.Rollout(
        completion=completion_to_pb(rollout.completion),
        score=rollout.score,
        reward_version=rollout.reward_version,
        reference_logprobs=rollout.reference_logprobs,
        scored_as_text=rollout.scored_as_text,
        generate_seconds=rollout.generate_seconds,
        score_seconds=rollout.score_seconds,
        terms=[rollout_pb2.TermScore(name=name, score=score) for name, score in rollout.terms],
    )


def decode_outcome(payload: bytes) -> Outcome:
    """Return the outcome in bytes of the queue.

    Raises:
        CorruptData: if the bytes are damaged or not an outcome, its parts differ in length, or it has another
            number of rollouts than its task has samples.
        SchemaTooNew: if a newer version of fairlead wrote them.
    """
    message = rollout_pb2.Outcome()
    try:
        message.ParseFromString(without_checksum(payload, what="an outcome"))
    except DecodeError as error:
        raise CorruptData(f"not an outcome ({len(payload)} bytes): {error}") from error
    _check_schema("outcome", message.schema_version)
    task = _task_from_pb(message.task)
    return Outcome(
        task=task,
        result=_result_from_pb(message, task),
        worker=message.worker,
        deliveries=message.deliveries,
        failures=message.failures,
    )


def _result_from_pb(message: rollout_pb2.Outcome, task: PromptTask) -> TaskResult:
    kind = message.WhichOneof("result")
    if kind is None:
        raise CorruptData(f"outcome of task {task.task_id} has no result")
    if kind == "dead_letter":
        return DeadLetter(message.dead_letter.reason, message.dead_letter.detail)
    rollouts = [message.rollout] if kind == "rollout" else message.group.rollouts
    if len(rollouts) != task.num_samples:
        raise CorruptData(
            f"outcome of task {task.task_id} has {len(rollouts)} rollouts; its task has {task.num_samples} "
            "samples"
        )
    return tuple(map(_rollout_from_pb, rollouts))


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
        terms=tuple((term.name, term.score) for term in message.terms),
    )


def _check_schema(what: str, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"{what} has schema version {version}; this fairlead reads up to {SCHEMA_VERSION}: upgrade it"
        )
    if version < 1:
        raise CorruptData(f"{what} has schema version {version}")
