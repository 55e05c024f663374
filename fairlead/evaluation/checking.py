"""Decide whether an answer names an accepted answer of a question."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_SEPARATORS = re.compile(r"[^\w]+")


def normalised(text: str) -> str:
    """Return the words of a text in lower case with single spaces; `%` is read as percent."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("%", " percent ")
    return _SEPARATORS.sub(" ", re.sub(r"['\u2019]", "", plain)).strip()


def names(answer: str, phrases: Sequence[str]) -> bool:
    """Return whether an answer contains one of the phrases as whole words; `^` asks for it at the start."""
    text = f" {normalised(answer)} "
    return any(
        text.startswith(f" {normalised(phrase)} ")
        if phrase.startswith("^")
        else f" {normalised(phrase)} " in text
        for phrase in phrases
    )


def is_correct(answer: str, accepted: Sequence[str], rejected: Sequence[str]) -> bool:
    """Return whether an answer names an accepted phrase and no rejected one."""
    return names(answer, accepted) and not names(answer, rejected)
