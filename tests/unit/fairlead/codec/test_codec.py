"""Encoding and decoding: round trips, and errors for foreign or damaged bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead import codec
from fairlead.errors import CorruptData, InvalidInput, SchemaTooNew
from fairlead.types import (
    Completion,
    DeadLetter,
    FinishReason,
    Message,
    Outcome,
    PromptTask,
    Rollout,
    SamplingParams,
    ScoreItem,
    TextPair,
    TokenPair,
    VersionSpan,
    WeightVersion,
    WholeText,
)
from fairlead.v1 import reward_service_pb2, rollout_pb2

ids = st.lists(st.integers(0, 2**31 - 1), max_size=8).map(tuple)
floats = st.floats(width=32, allow_nan=False)
counts = st.integers(0, 2**31 - 1)
versions = st.builds(WeightVersion, st.integers(0, 2**40), st.integers(0, 2**40))
samplings = st.builds(
    SamplingParams,
    temperature=st.floats(0, 100),
    top_p=st.floats(0, 1),
    top_k=counts,
    max_new_tokens=counts,
    stop_token_ids=ids,
    stop_strings=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    seed=st.integers(-(2**63), 2**63 - 1),
)
turns = st.lists(st.builds(Message, st.text(), st.text()), max_size=3).map(tuple)
tasks = st.builds(
    PromptTask, st.integers(0, 2**62), ids, st.text(), samplings, versions, turns, st.integers(1, 4)
)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    tokens = draw(ids)
    floats_for_tokens = st.lists(floats, min_size=len(tokens), max_size=len(tokens)).map(tuple)
    spans = st.lists(st.builds(VersionSpan, versions, counts, counts), max_size=3).map(tuple)
    completion = Completion(
        tokens,
        draw(floats_for_tokens),
        draw(st.sampled_from(FinishReason)),
        draw(spans),
        draw(st.text()),
        draw(st.booleans()),
    )
    return Rollout(completion, draw(floats), draw(st.text()), draw(floats_for_tokens), draw(st.booleans()))


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    task = draw(tasks)
    group = st.lists(rollouts(), min_size=task.num_samples, max_size=task.num_samples).map(tuple)
    result = draw(group | st.builds(DeadLetter, st.text(), st.text()))
    return Outcome(task, result, draw(st.text()), draw(counts), draw(counts))


@given(tasks)
def test_task_survives_the_round_trip(task: PromptTask):
    assert codec.decode_task(codec.encode_task(task)) == task


scored = (
    st.builds(TextPair, st.text(), st.text(), turns)
    | st.builds(TokenPair, ids, ids)
    | st.builds(WholeText, st.text())
)


@given(st.lists(scored))
def test_items_to_score_survive_the_round_trip(items: list[ScoreItem]):
    messages = [codec.score_item_to_pb(item) for item in items]
    assert codec.score_items_from_pb(messages) == items


@given(outcomes())
def test_outcome_survives_the_round_trip(outcome: Outcome):
    assert codec.decode_outcome(codec.encode_outcome(outcome)) == outcome


@given(st.binary(max_size=200))
def test_any_bytes_are_an_outcome_or_a_named_error(payload: bytes):
    for decode in (codec.decode_outcome, codec.decode_task):
        try:
            decode(payload)
        except (CorruptData, SchemaTooNew) as error:
            assert str(error)


def test_newer_schema_version_is_refused_and_named():
    newer = rollout_pb2.PromptTask(schema_version=codec.SCHEMA_VERSION + 1, task_id=3)
    with pytest.raises(SchemaTooNew, match="prompt task has schema version 3; this fairlead reads up to 2"):
        codec.decode_task(newer.SerializeToString())


def test_outcome_without_result_or_with_unequal_lengths_is_corrupt():
    message = rollout_pb2.Outcome(schema_version=1, task=rollout_pb2.PromptTask(schema_version=1, task_id=7))
    with pytest.raises(CorruptData, match="outcome of task 7 has no result"):
        codec.decode_outcome(message.SerializeToString())
    message.rollout.completion.token_ids.extend([1, 2])
    with pytest.raises(CorruptData, match="2 token ids and 0 log-probs"):
        codec.decode_outcome(message.SerializeToString())


def test_only_whole_groups_are_written_and_read():
    task = PromptTask(7, (1,), "p", SamplingParams(), WeightVersion(1, 0), num_samples=3)
    rollout = Rollout(Completion((5,), (-1.0,), FinishReason.STOP, ()), 0.5, "r", ())
    for wrong in ((), (rollout,), (rollout,) * 2, (rollout,) * 4):
        with pytest.raises(ValueError, match=f"{len(wrong)} rollouts for a task of 3 samples"):
            codec.encode_outcome(Outcome(task, wrong, "w", 1, 0))
    whole = codec.encode_outcome(Outcome(task, (rollout,) * 3, "w", 1, 0))
    message = rollout_pb2.Outcome.FromString(whole)
    message.ClearField("checksum")
    assert (message.schema_version, message.task.schema_version, message.task.num_samples) == (2, 2, 3)
    for samples in (0, 1, 2, 4):
        message.task.num_samples = samples
        with pytest.raises(CorruptData, match=f"task 7 has 3 rollouts; its task has {samples or 1} samples"):
            codec.decode_outcome(message.SerializeToString())
    message.task.num_samples = 3
    message.group.Clear()
    with pytest.raises(CorruptData, match="task 7 has 0 rollouts; its task has 3 samples"):
        codec.decode_outcome(message.SerializeToString())
    message.rollout.SetInParent()
    with pytest.raises(CorruptData, match="task 7 has 1 rollouts; its task has 3 samples"):
        codec.decode_outcome(message.SerializeToString())


@pytest.mark.parametrize("samples", [-1, 4_097, 2**31 - 1])
def test_task_with_an_impossible_number_of_samples_is_corrupt(samples: int):
    message = rollout_pb2.PromptTask(schema_version=2, task_id=7, num_samples=samples)
    with pytest.raises(CorruptData, match=f"task 7 has {samples} samples; allowed: 1 to 4096"):
        codec.decode_task(message.SerializeToString())


def test_empty_item_is_refused_with_its_index():
    good = reward_service_pb2.ScoreItem(text=reward_service_pb2.TextPair(prompt="a", response="b"))
    with pytest.raises(InvalidInput, match=r"items\[1\]: got 'nothing', allowed: text, tokens or whole_text"):
        codec.score_items_from_pb([good, reward_service_pb2.ScoreItem()])


def test_weight_version_parses_its_text():
    assert WeightVersion.parse(str(WeightVersion(3, 17))) == WeightVersion(3, 17)
    assert WeightVersion(2, 0) > WeightVersion(1, 900)
    for text in ("", "3", "3-", "-1-2", "3-4-5", "3-x", "٣-٤x"):
        with pytest.raises(InvalidInput):
            WeightVersion.parse(text)
