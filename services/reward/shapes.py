"""Built-in terms of a reward: scores of the form of an answer, from its text only."""

from __future__ import annotations

from fairlead.config.rewards import RewardTerm

_WORDS = 3
"""Words of the sequences that count as repetitions."""


def shape_score(term: RewardTerm, response: str) -> float:
    """Return the score of an answer by `term.shape`."""
    words = response.split()
    if term.shape == "length":
        return -max(0, len(words) - term.max_words) / term.max_words
    sequences = [tuple(words[start : start + _WORDS]) for start in range(len(words) - _WORDS + 1)]
    return -(1 - len(set(sequences)) / len(sequences)) if sequences else 0.0
