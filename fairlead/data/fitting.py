"""Which pairs of answers a model can learn within its limit of tokens.

All answers to one prompt are read after the same part of it: the prompt loses as many tokens on its left as
the longest answer needs. An answer is never cut; the pairs of one that leaves no space for the prompt are
left out, and so are pairs of equal token ids. Used by the trainer and by `check`; knows neither tokenizers
nor models.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fairlead.data.comparisons import ComparedPair

_NUM_PLACES = 3
"""Places that a message names; the others are counted."""


class EncodedAnswer(NamedTuple):
    """What decides whether the pairs of an answer can be learnt."""

    tokens: int
    """Its length with its end."""
    content: Hashable
    """Equal for two answers of the same token ids, and for no others."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """The pairs of one prompt that can be learnt, and how much of it their answers follow."""

    pairs: tuple[tuple[int, int], ...]
    """(winner, loser) of those pairs, as indices of the answers."""
    prompt_tokens: int
    """Number of tokens of the prompt that are read, counted from its end."""
    too_long: tuple[int, ...]
    """Positions of the pairs that are left out because an answer leaves no space for the prompt."""
    alike: tuple[int, ...]
    """Positions of the pairs that are left out because their answers have the same token ids."""

    @property
    def answers(self) -> tuple[int, ...]:
        """Indices of the answers that are read."""
        return tuple(sorted({index for pair in self.pairs for index in pair}))


def fit(
    prompt_tokens: int,
    answers: Sequence[EncodedAnswer],
    pairs: Sequence[tuple[int, int]],
    *,
    max_tokens: int,
) -> Fitted:
    """Return the pairs of one prompt that can be learnt within `max_tokens`.

    Args:
        prompt_tokens: length of the prompt, at least 1.
        answers: the answers to it.
        pairs: (winner, loser), as indices of `answers`.
        max_tokens: longest sequence of prompt and answer.
    """
    kept: list[tuple[int, int]] = []
    too_long: list[int] = []
    alike: list[int] = []
    for position, (winner, loser) in enumerate(pairs):
        if max(answers[winner].tokens, answers[loser].tokens) >= max_tokens:
            too_long.append(position)
        elif answers[winner].content == answers[loser].content:
            alike.append(position)
        else:
            kept.append((winner, loser))
    longest = max((answers[index].tokens for pair in kept for index in pair), default=0)
    return Fitted(
        pairs=tuple(kept),
        prompt_tokens=min(prompt_tokens, max_tokens - longest),
        too_long=tuple(too_long),
        alike=tuple(alike),
    )


@dataclass(slots=True)
class LeftOutPairs:
    """How many pairs cannot be learnt, and where the first of them are."""

    pairs: int = 0
    """All pairs apart from ties."""
    too_long: int = 0
    """Pairs with an answer that leaves no space for the prompt."""
    alike: int = 0
    """Pairs whose answers have the same token ids."""
    too_long_at: list[str] = field(default_factory=list)
    """File, line and keys of the first such answers."""
    alike_at: list[str] = field(default_factory=list)
    """File, line and keys of the first such pairs."""

    @property
    def is_most(self) -> bool:
        """True if more than half of the pairs cannot be learnt, so that a stage refuses the data."""
        return 2 * (self.too_long + self.alike) > self.pairs

    def add(
        self,
        pairs: Sequence[ComparedPair],
        fitted: Fitted,
        answers: dict[str, EncodedAnswer],
        *,
        max_tokens: int,
    ) -> None:
        """Count the pairs of one prompt.

        Args:
            pairs: the pairs that `fitted` was made of.
            fitted: which of them can be learnt.
            answers: the answers by their text.
            max_tokens: longest sequence of prompt and answer.
        """
        self.pairs += len(pairs)
        self.too_long += len(fitted.too_long)
        self.alike += len(fitted.alike)
        for position in fitted.too_long[: _NUM_PLACES - len(self.too_long_at)]:
            pair = pairs[position]
            sides = zip(pair.keys, (pair.winner, pair.loser), strict=True)
            long = [key for key, text in sides if answers[text].tokens >= max_tokens]
            self.too_long_at.append(pair.place(*long))
        for position in fitted.alike[: _NUM_PLACES - len(self.alike_at)]:
            self.alike_at.append(pairs[position].place(*pairs[position].keys))

    def plus(self, other: LeftOutPairs) -> LeftOutPairs:
        """Return the counts of both."""
        return LeftOutPairs(
            self.pairs + other.pairs,
            self.too_long + other.too_long,
            self.alike + other.alike,
            [*self.too_long_at, *other.too_long_at][:_NUM_PLACES],
            [*self.alike_at, *other.alike_at][:_NUM_PLACES],
        )

    def sentences(self, max_tokens: int, *, stage: str = "reward_model") -> Iterator[str]:
        """Yield a sentence for each reason with its count, its first places and what to do in a stage."""
        if self.too_long:
            yield (
                f"{self.too_long:,} of {self.pairs:,} pairs are left out: an answer leaves no space for its "
                f"prompt within {max_tokens:,} tokens{_first(self.too_long_at, self.too_long)}; raise "
                f"{stage}.max_sequence_tokens if the model reads more, or shorten the answers"
            )
        if self.alike:
            yield (
                f"{self.alike:,} of {self.pairs:,} pairs are left out: the tokenizer reads both answers as "
                f"the same tokens{_first(self.alike_at, self.alike)}"
            )


def _first(places: Sequence[str], count: int) -> str:
    known = [place for place in places if place]
    return f" ({', '.join(known)}{', …' if count > len(known) else ''})" if known else ""
