"""The scan of serialized requests counts what a parser finds, names the field, and precedes the parser."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as inference

from fairlead.errors import InvalidInput, NotFound
from fairlead.v1 import reward_service_pb2 as pb
from services.runtime.wire_limits import WireLimits, check_wire

SCORE = "/fairlead.v1.RewardService/Score"
INFER = "/inference.GRPCInferenceService/ModelInfer"
LIMITS = WireLimits(
    entries={"fairlead.v1.ScoreRequest.items": 300, "fairlead.v1.TextPair.messages": 3},
    max_fields=2_000,
    max_numbers=2_000,
    max_text_bytes=4_000,
    names=frozenset({"inference.ModelInferRequest.model_name"}),
)
TEXT = pb.ScoreItem(whole_text="w" * 10)
IDS = pb.ScoreItem(tokens=pb.TokenPair(response_token_ids=[1] * 1_500 + [2**31 - 1] * 501))
LONG = pb.ScoreItem(text=pb.TextPair(response="é" * 2_001))


def conversation(turns: int) -> pb.ScoreItem:
    pair = pb.TextPair(response="w" * 1_000)
    for _ in range(turns):
        pair.messages.add(role="user", content="w")
    return pb.ScoreItem(text=pair)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (pb.ScoreRequest(items=[TEXT] * 301), "items: got 'more than 300 entries', allowed: at most 300"),
        (pb.ScoreRequest(items=[TEXT, conversation(4)]), "items.text.messages[1]: got 'more than 3 entries'"),
        (pb.ScoreRequest(items=[IDS]), "items.tokens.response_token_ids[0]: got 'more than 2000 numbers'"),
        (
            pb.ScoreRequest(items=[TEXT, TEXT, LONG]),
            "items.text.response[2]: got '4002 bytes', allowed: at most 4000",
        ),
    ],
    ids=["items", "turns", "ids", "text"],
)
def test_excess_is_refused_with_its_field(body: pb.ScoreRequest, message: str):
    data = body.SerializeToString()
    # What follows cannot be parsed, and is not reached.
    for sent in (data, data + b"\xff" * 20):
        with pytest.raises(InvalidInput, match="allowed: ") as caught:
            check_wire(SCORE, sent, LIMITS)
        assert str(caught.value).startswith(message)
    with pytest.raises(DecodeError):
        pb.ScoreRequest.FromString(data + b"\xff" * 20)


def test_requests_within_a_request_are_limited_one_by_one():
    limits = WireLimits(
        entries={"fairlead.v1.ScoreRequest.items": 40},
        max_numbers=1_000,
        whole=frozenset({"fairlead.v1.ScoreRequest.items"}),
    )

    def items(*sizes: int) -> bytes:
        ids = [pb.ScoreItem(tokens=pb.TokenPair(response_token_ids=[300] * size)) for size in sizes]
        return pb.ScoreRequest(items=ids).SerializeToString()

    check_wire(SCORE, items(*[1_000] * 30, *[5] * 10), limits)
    for sizes, message in (
        ([900, 5, 1_001, 5], r"items.tokens.response_token_ids\[2\]: got 'more than 1000 numbers'"),
        ([500] * 41, "items: got 'more than 40 entries'"),
    ):
        with pytest.raises(InvalidInput, match=message):
            check_wire(SCORE, items(*sizes), limits)


def test_unknown_fields_are_limited():
    with pytest.raises(InvalidInput, match="more than 2000 fields"):
        check_wire(SCORE, b"\x78\x01" * 2_001, LIMITS)
    with pytest.raises(InvalidInput, match="an unknown field of 100000 bytes"):
        check_wire(SCORE, b"\x7a\xa0\x8d\x06" + bytes(100_000), LIMITS)


def test_a_name_that_is_too_long_is_not_found():
    body = inference.ModelInferRequest(model_name="x" * 5_000).SerializeToString()
    with pytest.raises(NotFound, match="model_name"):
        check_wire(INFER, body, LIMITS)


def test_requests_within_the_limits_pass():
    within = pb.ScoreRequest(items=[TEXT] * 290 + [conversation(3)] * 3)
    check_wire(SCORE, within.SerializeToString(), LIMITS)
    check_wire("/unknown.Service/Call", b"\xff" * 10_000, LIMITS)


@given(st.binary(min_size=1, max_size=40))
def test_any_bytes_are_scanned_to_an_end(part: bytes):
    body = part * (2_000 // len(part))
    try:
        check_wire(SCORE, body, LIMITS)
    except InvalidInput:
        return
