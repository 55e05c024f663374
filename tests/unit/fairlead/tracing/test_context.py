"""Ids of traces: the same in every process, and `traceparent` as the standard has it."""

from __future__ import annotations

import hashlib

import pytest

from fairlead.tracing.context import NOT_SAMPLED, SpanContext, is_sampled, of_task, of_update


def digest(*parts: object) -> bytes:
    return hashlib.sha256("\0".join(["fairlead", *map(str, parts)]).encode()).digest()


def test_task_decides_the_left_half_and_the_sending_the_rest():
    found = of_task("demo", 17, (3, 2), one_in=1)
    sending = digest("demo", "sending", 17, 3, 2)
    assert found.trace_id.to_bytes(16) == digest("demo", "task", 17)[:8] + sending[:8]
    assert found.span_id.to_bytes(8) == sending[8:16]
    again = of_task("demo", 17, (4, 1), one_in=1)
    assert again.trace_id >> 64 == found.trace_id >> 64
    assert again.trace_id != found.trace_id


def test_one_task_of_as_many_as_asked_is_sampled_with_all_its_sendings():
    sampled = {task for task in range(16_000) if of_task("demo", task, (1, 1), one_in=16).is_sampled}
    assert 850 < len(sampled) < 1_150  # 1,000 expected, standard deviation 31
    assert sampled == {task for task in range(16_000) if of_task("demo", task, (9, 4), one_in=16).is_sampled}
    assert is_sampled(of_task("demo", min(sampled), (1, 1), one_in=16).trace_id, 16)
    unsampled = of_task("demo", next(task for task in range(99) if task not in sampled), (1, 1), one_in=16)
    assert unsampled is NOT_SAMPLED
    assert SpanContext.parse(unsampled.traceparent) is NOT_SAMPLED
    assert SpanContext.parse(unsampled.traceparent[:-1] + "1") == SpanContext(1, 1, is_sampled=True)
    assert of_update("demo", 1, 2).is_sampled


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),  # the standard's own example
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03", True),
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-brings", True),
    ],
)
def test_valid_headers_are_parsed(header: str, sampled: bool):
    found = SpanContext.parse(header)
    assert found == SpanContext(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, sampled)
    assert found.traceparent[:-2] == "00" + header[2:53]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n00",
        "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-" + "x" * 1_000_000,
    ],
)
def test_invalid_headers_count_as_none(header: str | None):
    assert SpanContext.parse(header) is None
