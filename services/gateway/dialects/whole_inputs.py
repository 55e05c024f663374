"""The `input` of requests of vLLM and SGLang: whole conversations, as texts or as token ids, one or many."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fairlead.errors import InvalidInput
from fairlead.types import ScoreItem, Scores, TokenPair, WholeText
from services.gateway.backend import Backend
from services.runtime.caller_fields import caller_fields
from services.runtime.http.call import HttpCall
from services.runtime.http.json_limits import BodyLimits

_Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]
_Ids = Annotated[list[int], Field(min_length=1, fail_fast=True)]
WholeInput = str | _Texts | _Ids | Annotated[list[_Ids], Field(min_length=1, fail_fast=True)]
"""One text, several texts, the ids of one text, or those of several."""


def body_limits(backend: Backend) -> BodyLimits:
    """Return what a body with such an `input` may contain."""
    tokens = backend.max_sequence_tokens
    return BodyLimits(
        entries={"input": backend.max_items},
        numbers={"input": tokens, "input[]": tokens},
        max_text_bytes=backend.max_text_bytes,
        max_values=2 * backend.max_items + 64,
        max_numbers=backend.max_request_tokens,
    )


async def score_inputs(backend: Backend, given: WholeInput, call: HttpCall) -> Scores:
    """Return one score for each text of an `input`, in order.

    Raises:
        InvalidInput: an id is out of range, or a text cannot be scored; names the `input`.
        FairleadError: as `Backend.score`.
    """
    is_one = isinstance(given, str) or isinstance(given[0], int)
    with caller_fields({"items": "input" if is_one else "input[]", "request": "input"}):
        return await backend.score(_items(given), call)


def _items(given: WholeInput) -> list[ScoreItem]:
    if isinstance(given, str):
        return [WholeText(given)]
    if isinstance(given[0], int):
        return [_tokens(None, given)]
    return [
        WholeText(one) if isinstance(one, str) else _tokens(index, one) for index, one in enumerate(given)
    ]


def _tokens(index: int | None, given: object) -> TokenPair:
    ids = [int(token) for token in given] if isinstance(given, list) else []
    for position, token in enumerate(ids):
        if not 0 <= token < 2**31:
            field = "input" if index is None else f"input[{index}]"
            raise InvalidInput(field, index=position, got=token, allowed="token ids from 0 to 2³¹ − 1")
    return TokenPair((), tuple(ids))
