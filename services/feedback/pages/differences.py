"""The words in which two texts differ."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Literal

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
_MAX_WORDS = 4_000
"""Of one text. The time grows faster than the length."""

Part = tuple[Literal["same", "removed", "added"], str]
"""A piece of text: in both, only in the first, or only in the second."""


def differences(first: str, second: str) -> list[Part] | None:
    """Return the pieces of two texts in order; None if a text is too long to compare."""
    before, after = _WORDS.findall(first), _WORDS.findall(second)
    if max(len(before), len(after)) > _MAX_WORDS:
        return None
    found: list[Part] = []
    for kind, start, end, other_start, other_end in SequenceMatcher(None, before, after).get_opcodes():
        if kind == "equal":
            found.append(("same", "".join(before[start:end])))
            continue
        if end > start:
            found.append(("removed", "".join(before[start:end])))
        if other_end > other_start:
            found.append(("added", "".join(after[other_start:other_end])))
    return found
