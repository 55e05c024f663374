"""Comparisons as token sequences: every response once, and the pairs among them.

The reward model and the preference stage learn them.

A ranking is one element of a batch. So are consecutive pairs that share the prompt and a response, which is
how a ranking looks when it is written as pairs. Rankings of one prompt by several people stay separate:
nobody compared the responses in one with those in another.

Shapes: K responses of a prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from fairlead.config import RunConfig
from fairlead.data.comparisons import Comparisons, Preference, RankedResponses
from fairlead.data.encoding import encode_answer
from fairlead.data.fitting import EncodedAnswer, LeftOutPairs, fit
from fairlead.data.records import Split
from fairlead.errors import ConfigError
from trainer.distributed import micro_batches
from trainer.distributed.group import Group
from trainer.sequences import length_ranges, overhead_tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodedRanking:
    """The compared responses to one prompt."""

    sequences: tuple[tuple[int, ...], ...]
    """Prompt and response ids with EOS, of each of the K different responses."""
    pairs: tuple[tuple[int, int], ...]
    """(winner, loser), as indices of `sequences`; never empty."""
    margins: tuple[float, ...] = ()
    """By how much each winner is better according to the data, in the order of `pairs`; empty: unknown."""
    prompt_length: int = 1
    """How many ids of each sequence are the prompt's; the same ids in all of them."""
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
                prompt_length=fitted.prompt_tokens,
                prompt=str(prompt),
                texts=tuple(texts[number] for number in read),
            )
        )
    return EncodedComparisons(
        tuple(rankings), truncated=truncated, ties=ties, skipped=skipped, left_out=left_out
    )


def encoded(
    config: RunConfig,
    preferences: Split[Comparisons],
    tokenizer: PreTrainedTokenizerBase,
    *,
    stage: str,
    max_tokens: int,
) -> tuple[EncodedComparisons, EncodedComparisons]:
    """Return the training and the held-out comparisons of a stage, and log what is cut and left out.

    Raises:
        ConfigError: if there are no comparisons, or most of them cannot be learnt within the limit of tokens.
        DataError: see `encode`.
    """
    known = encode(preferences.train, tokenizer, max_tokens=max_tokens)
    heldout = encode(preferences.heldout, tokenizer, max_tokens=max_tokens)
    left_out = known.left_out.plus(heldout.left_out)
    left_out_for = "; ".join(left_out.sentences(max_tokens, stage=stage))
    key = "data.preferences" if config.data.preferences else "data.sentences"
    if left_out.is_most:
        raise ConfigError(
            key,
            got=f"{left_out.too_long + left_out.alike} of {left_out.pairs} pairs that cannot be learnt",
            allowed=f"at most half of them: {left_out_for}",
        )
    if not known.rankings:
        raise ConfigError(key, got="no comparisons", allowed="at least one to train on")
    if left_out_for:
        logger.warning("%s", left_out_for)
    if known.truncated:
        logger.warning(
            "%d responses are longer than %d tokens with their prompts, which were cut on the left",
            *(known.truncated, max_tokens),
        )
    if known.skipped:
        logger.warning("%d rankings were left out: all their responses are tied", known.skipped)
    return known, heldout


def counts(known: EncodedComparisons, heldout: EncodedComparisons) -> dict[str, float]:
    """Return how many comparisons, prompts and responses were read, and how many pairs were left out."""
    both = (*known.rankings, *heldout.rankings)
    return {
        "comparisons": sum(len(ranking.pairs) for ranking in known.rankings),
        "rankings": len(known.rankings),
        "heldout_comparisons": sum(len(ranking.pairs) for ranking in heldout.rankings),
        "heldout_prompts": len({ranking.prompt for ranking in heldout.rankings}),
        "prompts": len({ranking.prompt for ranking in both}),
        "responses": sum(len(ranking.sequences) for ranking in both),
        "ties": known.ties + heldout.ties,
        "skipped": known.skipped + heldout.skipped,
        "truncated": known.truncated,
        "too_long": known.left_out.too_long + heldout.left_out.too_long,
        "alike": known.left_out.alike + heldout.left_out.alike,
    }


class Element(Protocol):
    """Sequences that are never divided among micro-batches."""

    @property
    def sequences(self) -> Sized:
        """The sequences."""
        ...

    @property
    def longest(self) -> int:
        """Length of the longest one."""
        ...


_Element = TypeVar("_Element", bound=Element)


def pack(rankings: Sequence[_Element], *, max_tokens: int, overhead: int = 0) -> Iterator[list[_Element]]:
    """Yield micro-batches of at most `max_tokens` padded tokens; a ranking is never split.

    Rankings are divided by length where that is cheaper, as in `trainer.sequences.pack`; `overhead` is what a
    micro-batch costs beyond its tokens, in tokens.
    """
    order = sorted(rankings, key=lambda ranking: -ranking.longest)
    widths = [ranking.longest for ranking in order for _ in range(len(ranking.sequences))]
    ends = {end for _, end in length_ranges(widths, max_tokens, overhead)}
    members: list[_Element] = []
    rows = done = 0
    for ranking in order:
        count = len(ranking.sequences)
        if members and (done in ends or (rows + count) * members[0].longest > max_tokens):
            yield members
            members = []
            rows = 0
        members.append(ranking)
        rows += count
        done += count
    if members:
        yield members


def share(
    rankings: Sequence[_Element], device: torch.device, *, max_tokens: int, group: Group
) -> list[list[_Element]]:
    """Return the micro-batches of this rank, balanced by tokens; as many for every rank, so some are
    empty.
    """
    overhead = overhead_tokens(device)
    if group.num_shares == 1:
        return list(pack(rankings, max_tokens=max_tokens, overhead=overhead))
    sizes = [len(ranking.sequences) * ranking.longest for ranking in rankings]
    parts = [
        list(pack([rankings[index] for index in own], max_tokens=max_tokens, overhead=overhead))
        for own in micro_batches.deal(sizes, ranks=group.num_shares)
    ]
    return micro_batches.filled(parts)[group.share]
