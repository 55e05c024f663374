"""The formats of an export by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fairlead.errors import InvalidInput
from services.feedback.exports import argilla, label_studio
from services.feedback.exports.lines import as_bytes
from services.feedback.exports.rankings import demonstrations, pairs, prompts, rankings
from services.feedback.store.judged import Judged

FORMATS: dict[str, tuple[str, Callable[[Sequence[Judged]], bytes]]] = {
    "rankings": ("jsonl", lambda judged: as_bytes(rankings(judged))),
    "pairs": ("jsonl", lambda judged: as_bytes(pairs(judged))),
    "demonstrations": ("jsonl", lambda judged: as_bytes(demonstrations(judged))),
    "prompts": ("jsonl", lambda judged: as_bytes(prompts(judged))),
    "argilla": ("jsonl", lambda judged: as_bytes(argilla.records(judged))),
    "label-studio": ("json", label_studio.as_bytes),
}
"""Suffix of the file, and what writes it."""


def export(judged: Sequence[Judged], format_: str) -> bytes:
    """Return a file of a format. The same snapshot gives the same bytes.

    Raises:
        InvalidInput: there is no such format.
    """
    if format_ not in FORMATS:
        raise InvalidInput("format", got=format_, allowed=f"one of {', '.join(FORMATS)}")
    return FORMATS[format_][1](judged)
