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
tasks = st.builds(PromptTask, st.integers(0, 2**62), ids, st.text(), samplings, versions, turns)


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


outcomes = st.builds(
    Outcome, tasks, rollouts() | st.builds(DeadLetter, st.text(), st.text()), st.text(), counts, counts
)


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


@given(outcomes)
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
    with pytest.raises(SchemaTooNew, match="prompt task has schema version 2; this fairlead reads up to 1"):
        codec.decode_task(newer.SerializeToString())


def test_outcome_without_result_or_with_unequal_lengths_is_corrupt():
    message = rollout_pb2.Outcome(schema_version=1, task=rollout_pb2.PromptTask(schema_version=1, task_id=7))
    with pytest.raises(CorruptData, match="outcome of task 7 has no result"):
        codec.decode_outcome(message.SerializeToString())
    message.rollout.completion.token_ids.extend([1, 2])
    with pytest.raises(CorruptData, match="2 token ids and 0 log-probs"):
        codec.decode_outcome(message.SerializeToString())


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
