"""Comparisons as token sequences: every response once, and the pairs among them.

A ranking is one element of a batch. So are consecutive pairs that share the prompt and a response, which is
how a ranking looks when it is written as pairs. Rankings of one prompt by several people stay separate:
nobody compared the responses in one with those in another.

Shapes: K responses of a prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from fairlead.data.chat import Prompt
from fairlead.data.comparisons import Comparisons, Preference, RankedResponses
from fairlead.data.encoding import encode_answer
from trainer.seeds import permutation


@dataclass(frozen=True, slots=True)
class EncodedRanking:
    """The compared responses to one prompt."""

    sequences: tuple[tuple[int, ...], ...]
    """Prompt and response ids with EOS, of each of the K different responses."""
    pairs: tuple[tuple[int, int], ...]
    """(winner, loser), as indices of `sequences`; never empty."""
    prompt: str = ""
    """The prompt as text."""
    texts: tuple[str, ...] = ()
    """The responses, in the order of `sequences`."""

    @property
    def text_pairs(self) -> list[tuple[str, str]]:
        """Every pair as texts: (winner, loser)."""
        return [(self.texts[winner], self.texts[loser]) for winner, loser in self.pairs]

    @property
    def longest(self) -> int:
        """Length of the longest sequence."""
        return max(len(sequence) for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class EncodedComparisons:
    """The encoded rankings of a file, and how many others were cut or skipped."""

    rankings: tuple[EncodedRanking, ...]
    """Rankings with at least one pair."""
    truncated: int
    """Sequences whose prompt was cut on the left to fit."""
    ties: int
    """Pairs that were left out: of equal rank, with scores too close, or of the same text."""
    skipped: int
    """Rankings without any pair because everything is tied."""


def elements(records: Iterable[Comparisons]) -> Iterator[RankedResponses | list[Preference]]:
    """Yield rankings unchanged, and consecutive pairs of one prompt that share a response as one element."""
    current: list[Preference] = []
    texts: set[str] = set()
    for record in records:
        joins = isinstance(record, Preference) and current and record.prompt == current[0].prompt
        shares = isinstance(record, Preference) and texts & {record.chosen, record.rejected}
        if current and not (joins and shares):
            yield current
            current = []
            texts = set()
        if isinstance(record, Preference):
            current.append(record)
            texts |= {record.chosen, record.rejected}
        else:
            yield record
    if current:
        yield current


def compared(element: RankedResponses | list[Preference]) -> tuple[Prompt, list[tuple[str, str]], int]:
    """Return the prompt, the (winner, loser) texts of all pairs except ties, and the number of ties."""
    if not isinstance(element, RankedResponses):
        return element[0].prompt, [(pair.chosen, pair.rejected) for pair in element], 0
    texts = element.texts
    return element.prompt, [(texts[i], texts[j]) for i, j in element.pairs], element.num_ties


def encode(
    records: Iterable[Comparisons], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> EncodedComparisons:
    """Encode comparisons as token sequences; a response that is in no pair is left out.

    Raises:
        DataError: for a conversation, if there is no chat template or the template refuses it.
    """
    rankings: list[EncodedRanking] = []
    truncated = ties = skipped = 0
    for element in elements(records):
        asked, pairs, tied = compared(element)
        ties += tied
        if not pairs:
            skipped += 1
            continue
        texts = tuple(dict.fromkeys(text for pair in pairs for text in pair))
        sequences = [list(itertools.chain(*encode_answer(tokenizer, asked, text))) for text in texts]
        truncated += sum(len(ids) > max_tokens for ids in sequences)
        index = {text: position for position, text in enumerate(texts)}
        rankings.append(
            EncodedRanking(
                sequences=tuple(tuple(ids[-max_tokens:]) for ids in sequences),
                pairs=tuple((index[winner], index[loser]) for winner, loser in pairs),
                prompt=str(asked),
                texts=texts,
            )
        )
    return EncodedComparisons(tuple(rankings), truncated=truncated, ties=ties, skipped=skipped)


def batches(count: int, *, size: int, seed: int, epoch: int, member: int = 0) -> Iterator[list[int]]:
    """Yield the indices of each optimizer step, in one permutation per epoch and ensemble member."""
    order = permutation(count, seed, "reward_model", epoch, *([member] if member else []))
    for start in range(0, count, size):
        yield order[start : start + size]


def pack(rankings: Sequence[EncodedRanking], *, max_tokens: int) -> Iterator[list[EncodedRanking]]:
    """Yield micro-batches of at most `max_tokens` padded tokens; a ranking is never split."""
    members: list[EncodedRanking] = []
    rows = 0
    for ranking in sorted(rankings, key=lambda ranking: -ranking.longest):
        if members and (rows + len(ranking.sequences)) * members[0].longest > max_tokens:
            yield members
            members = []
            rows = 0
        members.append(ranking)
        rows += len(ranking.sequences)
    if members:
        yield members
