"""Comparisons as token sequences: every response once, and the pairs among them.

A ranking is one element of a batch. So are pairs that follow one another and share the prompt and a response,
as a ranking does that was written as its pairs. Rankings of one prompt by several people stay apart: nobody
compared the answers of one with those of another.

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
    """The compared responses of one prompt."""

    sequences: tuple[tuple[int, ...], ...]
    """Prompt and response ids with EOS, of each of the K different responses."""
    pairs: tuple[tuple[int, int], ...]
    """(winner, loser), as indices of `sequences`; never empty."""
    prompt: str = ""
    """What was asked."""
    texts: tuple[str, ...] = ()
    """The responses, in the order of `sequences`."""

    @property
    def text_pairs(self) -> list[tuple[str, str]]:
        """(winner, loser) as texts."""
        return [(self.texts[winner], self.texts[loser]) for winner, loser in self.pairs]

    @property
    def longest(self) -> int:
        """Length of the longest sequence."""
        return max(len(sequence) for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class EncodedComparisons:
    """The elements of a file, and what became of the rest of it."""

    rankings: tuple[EncodedRanking, ...]
    """Those that compare anything."""
    truncated: int
    """Sequences that lost the left of their prompt to fit."""
    ties: int
    """Pairs left out: of equal rank, of scores too close, or of the same text."""
    skipped: int
    """Rankings in which everything is tied."""


def elements(records: Iterable[Comparisons]) -> Iterator[RankedResponses | list[Preference]]:
    """Rankings as they are; neighbouring pairs of one prompt that share a response, together."""
    current: list[Preference] = []
    texts: set[str] = set()
    for record in records:
        joins = isinstance(record, Preference) and current and record.prompt == current[0].prompt
        shares = isinstance(record, Preference) and texts & {record.chosen, record.rejected}
        if current and not (joins and shares):
            yield current
            current, texts = [], set()
        if isinstance(record, Preference):
            current.append(record)
            texts |= {record.chosen, record.rejected}
        else:
            yield record
    if current:
        yield current


def compared(element: RankedResponses | list[Preference]) -> tuple[Prompt, list[tuple[str, str]], int]:
    """Prompt, (winner, loser) texts of all pairs that are no ties, and the number of ties."""
    if not isinstance(element, RankedResponses):
        return element[0].prompt, [(pair.chosen, pair.rejected) for pair in element], 0
    texts = element.texts
    return element.prompt, [(texts[i], texts[j]) for i, j in element.pairs], element.num_ties


def encode(
    records: Iterable[Comparisons], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> EncodedComparisons:
    """Rankings of token sequences. A response that is in no pair is not read.

    Raises:
        DataError: a prompt of messages, and the tokenizer has no chat template or the template refuses it.
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
    """Indices of each optimizer step of an epoch, in one permutation per epoch and member of an ensemble."""
    order = permutation(count, seed, "reward_model", epoch, *([member] if member else []))
    for start in range(0, count, size):
        yield order[start : start + size]


def pack(rankings: Sequence[EncodedRanking], *, max_tokens: int) -> Iterator[list[EncodedRanking]]:
    """Cuts rankings into micro-batches of at most `max_tokens` padded tokens; a ranking is never cut."""
    members: list[EncodedRanking] = []
    rows = 0
    for ranking in sorted(rankings, key=lambda ranking: -ranking.longest):
        if members and (rows + len(ranking.sequences)) * members[0].longest > max_tokens:
            yield members
            members, rows = [], 0
        members.append(ranking)
        rows += len(ranking.sequences)
    if members:
        yield members
