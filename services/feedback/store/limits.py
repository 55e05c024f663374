"""Limits of everything that enters the store, checked before any work."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fairlead.errors import InvalidInput
from services.feedback.store.canonical import canonical

_WORD = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_IDENTIFIER = re.compile(r"[\x21-\x7e]{1,200}")
_HANDLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.@+-]{0,63}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest values that the store takes."""

    text_characters: int = 200_000
    """Of an answer, a turn of a prompt, a demonstration or a guideline."""
    turns: int = 200
    """Messages of a prompt."""
    answers: int = 16
    """Answers of a task; a project sets fewer."""
    note_characters: int = 10_000
    """Of a note."""
    details_bytes: int = 1_000_000
    """JSON of a draft, of a judgment's `details` or of gold; a judge records both orders' raw outputs."""
    flags: int = 32
    """Flags of one answer."""
    overlap: int = 1_000
    """Judgments of one task."""
    tasks: int = 1_000
    """Tasks or prompts of one call."""
    page: int = 1_000
    """Rows that one call returns."""


def check_text(field: str, value: object, limit: int, *, empty: bool = False) -> str:
    """Return a text within its limit.

    Raises:
        InvalidInput: if it is no text, is blank where that is not allowed, or is too long.
    """
    if not isinstance(value, str):
        raise InvalidInput(field, got=value, allowed="a text")
    if len(value) > limit:
        raise InvalidInput(field, got=f"{len(value)} characters", allowed=f"at most {limit}")
    if not empty and not value.strip():
        raise InvalidInput(field, got=value, allowed="a text that is not blank")
    return value


def check_choice(field: str, value: object, allowed: Collection[str]) -> str:
    """Return one of the allowed words.

    Raises:
        InvalidInput: if it is another.
    """
    if not isinstance(value, str) or value not in allowed:
        raise InvalidInput(field, got=value, allowed=f"one of {', '.join(sorted(allowed))}")
    return value


def check_choices(field: str, values: Sequence[str], allowed: Collection[str]) -> tuple[str, ...]:
    """Return words that are all allowed, at least one, none twice.

    Raises:
        InvalidInput: if that is not so.
    """
    found = tuple(check_choice(field, value, allowed) for value in values)
    if not found or len(set(found)) < len(found):
        raise InvalidInput(
            field, got=list(values), allowed=f"some of {', '.join(sorted(allowed))}, each once"
        )
    return found


def check_word(field: str, value: object) -> str:
    """Return a short word such as a reason or a flag.

    Raises:
        InvalidInput: if it is none.
    """
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise InvalidInput(field, got=value, allowed="1 to 64 of a-z, 0-9, `_`, `.` and `-`")
    return value


def check_identifier(field: str, value: object, *, empty: bool = False) -> str:
    """Return an identifier that comes from outside: printable ASCII without spaces.

    Raises:
        InvalidInput: if it is none.
    """
    if not (empty and value == "") and (not isinstance(value, str) or not _IDENTIFIER.fullmatch(value)):
        raise InvalidInput(field, got=value, allowed="1 to 200 printable ASCII characters without spaces")
    return str(value)


def check_handle(field: str, value: object) -> str:
    """Return the name by which a person is known.

    Raises:
        InvalidInput: if it has other characters or is too long.
    """
    if not isinstance(value, str) or not _HANDLE.fullmatch(value):
        raise InvalidInput(
            field, got=value, allowed="1 to 64 letters, digits, spaces and `_.@+-`, a letter or digit first"
        )
    return value


def check_whole(field: str, value: object, low: int, high: int) -> int:
    """Return a whole number within its limits.

    Raises:
        InvalidInput: if it is of another type or outside of them.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInput(field, got=value, allowed=f"a whole number from {low} to {high}")
    return value


def check_number(field: str, value: object, low: float, high: float = math.inf) -> float:
    """Return a finite number within its limits.

    Raises:
        InvalidInput: if it is of another type, not finite, or outside of them.
    """
    number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not number or not low <= float(value) <= high:  # type: ignore[arg-type]
        wanted = f"a number of at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
        raise InvalidInput(field, got=value, allowed=wanted)
    return float(value)  # type: ignore[arg-type]


def check_object(field: str, value: object, limit: int) -> str:
    """Return an object as canonical JSON within its limit.

    Raises:
        InvalidInput: if it is no object, has what JSON cannot write, or is too large.
    """
    if not isinstance(value, Mapping):
        raise InvalidInput(field, got=value, allowed="an object")
    try:
        text = canonical(dict(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(field, got=str(error), allowed="values that JSON can write") from error
    if len(text) > limit:
        raise InvalidInput(field, got=f"{len(text)} bytes", allowed=f"at most {limit}")
    return text
