"""Comparisons as token sequences: every response once, and the pairs among them.

A ranking is one element of a batch. So are consecutive pairs that share the prompt and a response, which is
how a ranking looks when it is written as pairs. Rankings of one prompt by several people stay separate:
nobody compared the responses in one with those in another.

Shapes: K responses of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from fairlead.data.comparisons import Comparisons, Preference, RankedResponses
from fairlead.data.encoding import encode_answer
from fairlead.data.fitting import EncodedAnswer, LeftOutPairs, fit
from trainer.seeds import permutation


@dataclass(frozen=True, slots=True)
class EncodedRanking:
    """The compared responses to one prompt."""

    sequences: tuple[tuple[int, ...], ...]
    """Prompt and response ids with EOS, of each of the K different responses."""
    pairs: tuple[tuple[int, int], ...]
    """(winner, loser), as indices of `sequences`; never empty."""
    margins: tuple[float, ...] = ()
    """By how much each winner is better according to the data, in the order of `pairs`; empty: unknown."""
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
    """The encoded rankings of a file, and how many others were cut or left out."""

    rankings: tuple[EncodedRanking, ...]
    """Rankings with at least one pair."""
    truncated: int
    """Sequences whose prompt was cut on the left to fit."""
    ties: int
    """Pairs that were left out: of equal rank, with scores too close, or of the same text."""
    skipped: int
    """Rankings without any pair because everything is tied."""
    left_out: LeftOutPairs
    """Pairs that compare nothing within the limit."""


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


def encode(
    records: Iterable[Comparisons], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> EncodedComparisons:
    """Encode comparisons as token sequences; a response that is in no pair is left out.

    Within a ranking every response is read after the same prompt, see `fairlead.data.fitting`.

    Raises:
        DataError: for a conversation, if there is no chat template or the template refuses it.
    """
    rankings: list[EncodedRanking] = []
    truncated = ties = skipped = 0
    left_out = LeftOutPairs()
    for element in elements(records):
        compared = element if isinstance(element, list) else [element]
        ties += sum(record.num_ties for record in compared if isinstance(record, RankedResponses))
        pairs = [pair for record in compared for pair in record.compared]
        if not pairs:
            skipped += 1
            continue
        prompt = compared[0].prompt
        texts = tuple(dict.fromkeys(text for pair in pairs for text in (pair.winner, pair.loser)))
        encoded = [encode_answer(tokenizer, prompt, text) for text in texts]
        prompt_ids = encoded[0][0]
        answers = {
            text: EncodedAnswer(len(ids), tuple(ids)) for text, (_, ids) in zip(texts, encoded, strict=True)
        }
        index = {text: position for position, text in enumerate(texts)}
        margins = {(index[pair.winner], index[pair.loser]): pair.margin for pair in pairs}
        fitted = fit(
            len(prompt_ids),
            list(answers.values()),
            [(index[pair.winner], index[pair.loser]) for pair in pairs],
            max_tokens=max_tokens,
        )
        left_out.add(pairs, fitted, answers, max_tokens=max_tokens)
        if not fitted.pairs:
            continue
        read = fitted.answers
        truncated += len(read) * (fitted.prompt_tokens < len(prompt_ids))
        rankings.append(
            EncodedRanking(
                sequences=tuple(
                    (*prompt_ids[-fitted.prompt_tokens :], *encoded[number][1]) for number in read
                ),
                pairs=tuple((read.index(winner), read.index(loser)) for winner, loser in fitted.pairs),
                margins=tuple(margins[pair] for pair in fitted.pairs),
                prompt=str(prompt),
                texts=tuple(texts[number] for number in read),
            )
        )
    return EncodedComparisons(
        tuple(rankings), truncated=truncated, ties=ties, skipped=skipped, left_out=left_out
    )


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
