"""What a reviewer looks at in a collected prompt, and masks: parts of its turns.

The API and the page *Screen* call this. Knows neither the store nor HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from fairlead.errors import InvalidInput
from fairlead.types import Message
from services.feedback.collection.personal_data import Span, mask, placeholders, suspects

Reason = Literal["personal_data", "harmful", "broken", "not_our_field", "other"]
"""Why a prompt is rejected."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A part of a turn that a reviewer looks at."""

    turn: int
    """Index of the turn."""
    span: Span
    """Where it is in the turn, and what."""
    masked: bool
    """True for a placeholder; False for what may be personal data and is there in full."""


def marks(turns: Sequence[Message]) -> tuple[Mark, ...]:
    """Return the parts of a prompt that a reviewer looks at, in order."""
    found = [
        Mark(index, span, is_masked)
        for index, turn in enumerate(turns)
        for is_masked, spans in ((True, placeholders(turn.content)), (False, suspects(turn.content)))
        for span in spans
    ]
    return tuple(sorted(found, key=lambda one: (one.turn, one.span)))


def parts(text: str) -> list[tuple[str, str]]:
    """Return a text in parts, each with the kind of its mark; empty for what is not marked."""
    found: list[tuple[str, str]] = []
    end = 0
    for span in sorted([*placeholders(text), *suspects(text)]):
        if span.start >= end:
            found += [(text[end : span.start], ""), (text[span.start : span.end], span.kind)]
            end = span.end
    return [part for part in (*found, (text[end:], "")) if part[0]]


def masked_turns(turns: Sequence[Message], spans: Sequence[tuple[int, Span]]) -> tuple[Message, ...]:
    """Return turns with a placeholder in place of each span.

    Args:
        turns: of a prompt.
        spans: each with the index of its turn, in any order.

    Raises:
        InvalidInput: a span is outside of its turn, or over another.
    """
    by_turn: dict[int, list[Span]] = {}
    for number, (turn, span) in enumerate(spans):
        if not 0 <= turn < len(turns):
            raise InvalidInput(f"spans[{number}].turn", got=turn, allowed=f"0 to {len(turns) - 1}")
        length = len(turns[turn].content)
        if not 0 <= span.start < span.end <= length:
            got = f"{span.start} to {span.end}"
            raise InvalidInput(f"spans[{number}]", got=got, allowed=f"a part of {length} characters")
        by_turn.setdefault(turn, []).append(span)
    new = list(turns)
    for turn, found in by_turn.items():
        ordered = sorted(found)
        for one, following in pairwise(ordered):
            if following.start < one.end:
                got = f"{one.start} to {one.end} and {following.start} to {following.end}"
                raise InvalidInput("spans", got=got, allowed="parts of which none is over another")
        new[turn] = Message(turns[turn].role, mask(turns[turn].content, ordered)[0])
    return tuple(new)
