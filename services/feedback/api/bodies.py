"""What the bodies of the API share: their base class, prompts, and the names of fields in errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

from fastapi import APIRouter, Header
from pydantic import BaseModel, ConfigDict, Field

from fairlead.errors import InvalidInput
from fairlead.types import Message
from services.feedback.routes import API
from services.feedback.store.records import PLAIN_TEXT
from services.runtime.http.body import json_route
from services.runtime.http.failures import ERROR_RESPONSES
from services.runtime.http.json_limits import BodyLimits

MAX_ITEMS = 1_000
"""Tasks or prompts of one request."""
MAX_EXCHANGES = 100
"""Exchanges of one request."""
MAX_JUDGMENTS = 100
"""Tasks that a person gets, or hands in, in one request."""
_LIMITS = BodyLimits(
    entries={
        "judgments": MAX_JUDGMENTS,
        "tasks": MAX_ITEMS,
        "prompts": MAX_ITEMS,
        "records": MAX_ITEMS,
        "exchanges": MAX_EXCHANGES,
        "exchanges[].messages": 200,
    }
)

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=200,
        description="A request sent again with the same key changes nothing and has the same response.",
    ),
]
"""Type of a handler's parameter that receives the header."""
Kind = Literal["rank", "pair", "write", "edit", "prompt"]
"""Kinds of tasks."""
Why = Literal["random", "uncertain", "fresh", "gold", "audit"]
"""Why a task was chosen."""


class Body(BaseModel):
    """A part of a request. Unknown fields are refused."""

    model_config = ConfigDict(use_attribute_docstrings=True, strict=True, extra="forbid")


class Response(BaseModel):
    """A part of a response."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Turn(Response):
    """A message of a conversation."""

    role: str
    """`system`, `user` or `assistant`; `text` for a prompt that is plain text without roles."""
    content: str
    """Its text."""


class TurnBody(Body):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Who says it."""
    content: str
    """Its text."""


PromptBody = str | list[TurnBody]
"""A prompt as data files have it: plain text, or messages that end with one to answer."""


def routes(tag: str) -> APIRouter:
    """Return a router for routes with JSON bodies within the limits."""
    return APIRouter(
        prefix=API, tags=[tag], route_class=json_route(lambda: _LIMITS), responses=ERROR_RESPONSES
    )


def turns_of(prompt: PromptBody) -> tuple[Message, ...]:
    """Return the turns of a prompt, as the store keeps them."""
    if isinstance(prompt, str):
        return (Message(PLAIN_TEXT, prompt),)
    return tuple(Message(turn.role, turn.content) for turn in prompt)


def turns_shown(turns: Sequence[Message]) -> list[Turn]:
    """Return the turns of a prompt as a response has them."""
    return [Turn(role=turn.role, content=turn.content) for turn in turns]


_NAMES = (
    (re.compile(r"\.prompt\.turns\b"), ".prompt"),
    (re.compile(r"^(prompts\[\d+\])\.turns\b"), r"\1.prompt"),
    (re.compile(r"^masked\.turns\b"), "masked"),
    (re.compile(r"\.answers\b"), ".responses"),
    (re.compile(r"^request$"), "Idempotency-Key"),
)


@contextmanager
def wire_names() -> Iterator[None]:
    """Name the field of an error of the store as the body of the request does."""
    try:
        yield
    except InvalidInput as error:
        where = error.where
        for pattern, name in _NAMES:
            where = pattern.sub(name, where)
        raise InvalidInput(where, got=error.got, allowed=error.allowed) from error


Seconds = Annotated[float, Field(ge=0)]
"""A duration."""
