"""The scan of JSON bodies counts what a parser finds, names the field, and precedes the parser."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import InvalidInput
from services.runtime.http.body import read_json
from services.runtime.http.json_limits import MAX_KEYS, BodyLimits, check_json

LIMITS = BodyLimits(
    entries={"items": 4, "items[].messages": 2, "input": 4},
    numbers={"input": 3, "input[]": 3},
    max_values=40,
    max_numbers=20,
)
ITEM = {"prompt": "a, [b]: {c}", "response": 'x"\\é'}
TURN = {"role": "user", "content": "w"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"items": [ITEM] * 5}, "items"),
        ({"items": [ITEM, {"messages": [TURN] * 3}]}, "items[1].messages"),
        ({"input": ["w"] * 5}, "input"),
        ({"input": [1] * 4}, "input"),
        ({"input": [[1], [1, 2, 3, 4]]}, "input[1]"),
        ({"other": [[]] * 41}, "other"),
        ({"other": [7] * 21}, "other"),
        ({"other": {"x": [None] * 41}}, "other"),
        ({str(number): 1 for number in range(MAX_KEYS + 1)}, None),
        ({"items": [{str(number): 1 for number in range(MAX_KEYS + 1)}]}, None),
        ({"k" * 2_000: 1}, "body"),
        ({"prompt": "w" * (8 << 20)}, "prompt"),
        ({"prompt": '\\"' * (4 << 20)}, "prompt"),
        (
            {"items": [ITEM, {"messages": [TURN, TURN | {"content": "w" * (8 << 20)}]}]},
            "items[1].messages[1].content",
        ),
        ({"responses": ["w", "w" * (8 << 20)]}, "responses[1]"),
        (json.loads("[" * 250 + "]" * 250), "body"),
    ],
    ids=str,
)
def test_excess_is_refused_with_its_field(body: object, field: str | None):
    with pytest.raises(InvalidInput, match="allowed: at most") as caught:
        check_json(json.dumps(body).encode(), LIMITS)
    if field is not None:
        assert caught.value.where == field


async def test_limits_are_checked_before_anything_is_parsed():
    # The parser would refuse the rest of this body, which is not JSON.
    body = b'{"items": [' + b'{"prompt": "a"},' * 100 + b"!"
    with pytest.raises(InvalidInput, match="items: got 'more than 4 entries'"):
        await read_json(body, LIMITS)
    with pytest.raises(InvalidInput, match="valid JSON"):
        await read_json(b'{"items": [!', LIMITS)


def values(body: object) -> Iterator[object]:
    """Yield every key and value."""
    yield body
    if isinstance(body, dict):
        for key, value in body.items():
            yield key
            yield from values(value)
    elif isinstance(body, list):
        for value in body:
            yield from values(value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=5),
    max_leaves=30,
)


@given(JSON, st.booleans(), st.sampled_from([None, 1]))
def test_every_value_is_counted(body: object, ascii_only: bool, indent: int | None):
    data = json.dumps(body, ensure_ascii=ascii_only, indent=indent).encode(errors="replace")
    found = list(values(body))
    is_number = [isinstance(one, int | float) and not isinstance(one, bool) for one in found]
    num_numbers = sum(is_number)
    num_values = len(found) - num_numbers
    check_json(data, BodyLimits(max_values=max(num_values, 1), max_numbers=2 * num_numbers))
    if num_values > 1:
        with pytest.raises(InvalidInput, match="values"):
            check_json(data, BodyLimits(max_values=num_values - 1, max_numbers=2 * num_numbers))
    if num_numbers > 1:
        with pytest.raises(InvalidInput, match="numbers|entries"):
            check_json(data, BodyLimits(max_values=num_values + 1, max_numbers=num_numbers - 1))


@given(st.binary(max_size=60) | st.text('[]{}:,"\\ 1ae', max_size=60).map(str.encode))
def test_any_bytes_are_scanned_to_an_end(data: bytes):
    check_json(data, BodyLimits())
