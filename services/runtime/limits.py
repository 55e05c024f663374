"""Checks of requests that all model services share: token ids, lengths, texts, numbers of items.

Each raises InvalidInput with the field, the index, what was received and what is allowed; texts are never
quoted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fairlead.errors import InvalidInput

MAX_TURNS = 4_096
"""Limit on the turns of a conversation."""


def check_token_ids(
    field: str,
    token_ids: Sequence[int],
    *,
    vocabulary_size: int,
    index: int | None = None,
    allow_empty: bool = False,
) -> None:
    """Check that there is at least one id and that every id is in [0, vocabulary_size).

    Args:
        field: name of the ids in the request, such as `prompt.tokens.token_ids`.
        token_ids: the ids.
        vocabulary_size: number of rows of the model's embedding.
        index: index of the item in the batch, if there is one.
        allow_empty: whether an empty sequence is allowed.

    Raises:
        InvalidInput: names the first id that is not allowed, and its position.
    """
    if not token_ids:
        if allow_empty:
            return
        raise InvalidInput(field, index=index, got="no token ids", allowed="at least one")
    if min(token_ids) >= 0 and max(token_ids) < vocabulary_size:
        return
    position = next(i for i, token in enumerate(token_ids) if not 0 <= token < vocabulary_size)
    raise InvalidInput(
        field,
        index=index,
        got=f"{token_ids[position]} at position {position}",
        allowed=f"ids from 0 to {vocabulary_size - 1}",
    )


def check_sequence_tokens(field: str, num_tokens: int, *, limit: int, index: int | None = None) -> None:
    """Check that a sequence, prompt and response together, is not longer than the limit.

    Raises:
        InvalidInput: if it is longer.
    """
    if num_tokens > limit:
        raise InvalidInput(
            field,
            index=index,
            got=f"{num_tokens} tokens",
            allowed=f"at most {limit} tokens, prompt and response together",
        )


def check_text(field: str, text: str, *, max_bytes: int, index: int | None = None) -> None:
    """Check that a text is not larger than the limit.

    Raises:
        InvalidInput: if it is larger; has its size, not the text.
    """
    size = len(text) if text.isascii() else len(text.encode())
    if size > max_bytes:
        raise InvalidInput(
            field, index=index, got=f"{size} bytes", allowed=f"at most {max_bytes} bytes of UTF-8"
        )


def check_not_empty(field: str, text: str, *, index: int | None = None) -> None:
    """Check that a text has at least one character.

    Raises:
        InvalidInput: if it is empty.
    """
    if not text:
        raise InvalidInput(field, index=index, got="an empty text", allowed="at least one character")


def check_count(field: str, count: int, *, limit: int) -> None:
    """Check that a request has from 1 to `limit` items.

    Raises:
        InvalidInput: if it does not.
    """
    if not 1 <= count <= limit:
        raise InvalidInput(field, got=count, allowed=f"from 1 to {limit}")


def check_temperature(field: str, temperature: float, *, allow_zero: bool) -> None:
    """Check that a temperature is finite, greater than 0 and at most 100.

    Args:
        field: name of the field.
        temperature: the temperature.
        allow_zero: whether 0, greedy decoding, is allowed.

    Raises:
        InvalidInput: if it is not allowed.
    """
    valid = math.isfinite(temperature) and 0 <= temperature <= 100 and (allow_zero or temperature > 0)
    if not valid:
        allowed = "from 0 to 100" if allow_zero else "greater than 0, at most 100"
        raise InvalidInput(field, got=temperature, allowed=f"a finite number {allowed}")
