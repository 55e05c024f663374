"""Variety of texts, by which examples notice a policy that says the same again and again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable


def distinct_2(texts: Iterable[str]) -> float:
    """Return distinct pairs of adjacent words ÷ all pairs; low if a policy repeats the same phrases."""
    pairs = [pair for text in texts for pair in itertools.pairwise(text.split())]
    return len(set(pairs)) / max(len(pairs), 1)
