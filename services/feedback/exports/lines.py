"""What every export shares: prompts and texts as `fairlead.data` reads them, and lines of the same bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fairlead.errors import InvalidInput
from fairlead.types import Message
from services.feedback.store.records import PLAIN_TEXT

Values = dict[str, Any]
"""An object of a line."""
_LONE = re.compile("[\ud800-\udfff]")


def as_line(values: Mapping[str, Any]) -> str:
    """Return an object as one line of JSON. The order of the keys is that of the object."""
    return json.dumps(values, ensure_ascii=False, separators=(", ", ": "), allow_nan=False)


def as_bytes(lines: Iterable[Mapping[str, Any]]) -> bytes:
    """Return objects as a file of JSON lines."""
    return "".join(as_line(values) + "\n" for values in lines).encode("utf-8")


def readable(text: str) -> str:
    """Return a text that every reader of UTF-8 takes: unpaired surrogates become U+FFFD, as browsers show
    them.
    """
    return _LONE.sub("\ufffd", text)


def prompt_of(turns: Sequence[Message]) -> str | list[Values]:
    """Return a prompt as lines have it: plain text, or messages."""
    if len(turns) == 1 and turns[0].role == PLAIN_TEXT:
        return readable(turns[0].content)
    return [{"role": turn.role, "content": readable(turn.content)} for turn in turns]


def turns_of(prompt: object, where: str) -> tuple[Message, ...]:
    """Return the turns of a prompt in a line: plain text, or messages.

    Args:
        prompt: the value.
        where: its name, for errors.

    Raises:
        InvalidInput: it is neither.
    """
    if isinstance(prompt, str):
        return (Message(PLAIN_TEXT, prompt),)
    if not isinstance(prompt, list):
        raise invalid(where, prompt, "a text, or an array of messages")
    found = []
    for index, turn in enumerate(prompt):
        if not isinstance(turn, dict):
            raise invalid(f"{where}[{index}]", turn, "an object with role and content")
        role, content = turn.get("role"), turn.get("content")
        found.append(
            Message(text_at(f"{where}[{index}].role", role), text_at(f"{where}[{index}].content", content))
        )
    return tuple(found)


def text_at(where: str, value: object) -> str:
    """Return a text of a record from another tool.

    Raises:
        InvalidInput: it is no text, such as a number or true.
    """
    if not isinstance(value, str):
        raise invalid(where, value, "a text")
    return value


def invalid(where: str, value: object, allowed: str) -> InvalidInput:
    """Return the error for a value of a record from another tool."""
    return InvalidInput(where, got=value, allowed=allowed)
