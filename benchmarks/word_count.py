"""A reward function that counts words, for a constraint on the mean length of answers."""

from __future__ import annotations

from collections.abc import Sequence


def tens(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Return the number of words of each answer ÷ 10; the prompts do not matter."""
    return [len(response.split()) / 10 for response in responses]
