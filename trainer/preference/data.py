"""What the preference stage learns from, as token sequences: rankings, or single answers with a thumb.

An answer with a thumb has a second sequence, its prompt with the answer to another prompt; log-probs of these
estimate how far the policy is from the reference.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from fairlead.config import RunConfig
from fairlead.data.encoding import encode_answer
from fairlead.data.records import Split, load_preferences, load_thumbs
from fairlead.data.thumbs import Thumb
from fairlead.errors import ConfigError
from trainer import rankings, seeds
from trainer.preference.losses import best, worst
from trainer.rankings import EncodedRanking
from trainer.sequences import TokenSequence

logger = logging.getLogger(__name__)

_NUM_PLACES = 3
"""Places that a message names; the others are counted."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example: the answers to a prompt with their pairs, or an answer with a thumb."""

    sequences: tuple[TokenSequence, ...]
    """The answers; with a thumb, the answer, and the prompt with another prompt's answer."""
    pairs: tuple[tuple[int, int], ...]
    """(winner, loser), as indices of `sequences`; empty with a thumb."""
    good: bool
    """The thumb; True without one."""
    prompt: str
    """The prompt as text."""

    @property
    def longest(self) -> int:
        """Length of the longest sequence."""
        return max(len(sequence.token_ids) for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class Examples:
    """The training and held-out examples, and counts for the result."""

    train: tuple[Example, ...]
    """Never empty."""
    heldout: tuple[Example, ...]
    """May be empty."""
    counts: dict[str, float]
    """Numbers of records read and left out."""


def load(config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> Examples:
    """Load and encode the data of the stage.

    Raises:
        ConfigError: if there is nothing to learn, or too much does not fit within `max_tokens`.
        DataError: for an invalid line, or a conversation that the chat template refuses.
    """
    if config.reads_thumbs:
        return _with_thumbs(config, load_thumbs(config), tokenizer, max_tokens=max_tokens)
    known, heldout = rankings.encoded(
        config, load_preferences(config), tokenizer, stage="preference", max_tokens=max_tokens
    )
    counts = rankings.counts(known, heldout)
    if config.preference.is_paired:
        train, asked = (tuple(map(_of_ranking, side.rankings)) for side in (known, heldout))
        return Examples(train, asked, counts)
    answers = Split(*(tuple(_of_rankings(side.rankings)) for side in (known, heldout)))
    return _matched(config, answers, counts, max_tokens=max_tokens)


def _of_ranking(ranking: EncodedRanking) -> Example:
    sequences = tuple(TokenSequence(ids, ranking.prompt_length) for ids in ranking.sequences)
    return Example(sequences, ranking.pairs, good=True, prompt=ranking.prompt)


def _of_rankings(found: Iterable[EncodedRanking]) -> Iterator[Example]:
    """Yield the best answers of each ranking as good ones, and the worst as bad ones."""
    for ranking in found:
        count = len(ranking.sequences)
        for good, indices in ((True, best(count, ranking.pairs)), (False, worst(count, ranking.pairs))):
            for index in indices:
                sequence = TokenSequence(ranking.sequences[index], ranking.prompt_length)
                yield Example((sequence,), (), good=good, prompt=ranking.prompt)


def _with_thumbs(
    config: RunConfig, thumbs: Split[Thumb], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> Examples:
    encoded: list[tuple[Example, ...]] = []
    cut = 0
    too_long: list[str] = []
    for side in (thumbs.train, thumbs.heldout):
        found = []
        for thumb in side:
            prompt, answer = encode_answer(tokenizer, thumb.prompt, thumb.answer)
            if len(answer) >= max_tokens:
                too_long.append(thumb.place)
                continue
            cut += len(prompt) + len(answer) > max_tokens
            sequence = _joined(prompt, answer, max_tokens=max_tokens)
            found.append(Example((sequence,), (), good=thumb.good, prompt=str(thumb.prompt)))
        encoded.append(tuple(found))
    total = len(thumbs.train) + len(thumbs.heldout)
    if too_long:
        places = ", ".join(too_long[:_NUM_PLACES])
        what = (
            f"{len(too_long):,} of {total:,} answers leave no space for their prompts within {max_tokens:,} "
            f"tokens ({places}{', …' if len(too_long) > _NUM_PLACES else ''})"
        )
        if 2 * len(too_long) > total:
            allowed = "at most half of them: raise preference.max_sequence_tokens, or shorten the answers"
            raise ConfigError("data.thumbs", got=what, allowed=allowed)
        logger.warning("%s; they are left out", what)
    if cut:
        logger.warning(
            "%d answers are longer than %d tokens with their prompts, which were cut on the left",
            *(cut, max_tokens),
        )
    counts = {"truncated": float(cut), "too_long": float(len(too_long))}
    return _matched(config, Split(*encoded), counts, max_tokens=max_tokens)


def _matched(
    config: RunConfig, answers: Split[Example], counts: dict[str, float], *, max_tokens: int
) -> Examples:
    """Return the answers, each with the answer to another prompt after its own."""
    train, heldout = (
        _mismatched(side, config.seed, max_tokens=max_tokens) for side in (answers.train, answers.heldout)
    )
    if len({example.prompt for example in train}) == 1:
        logger.warning(
            "all answers to train on are to one prompt, so that z, the divergence of policy and reference, "
            "is estimated from them and not from answers to other prompts; add other prompts"
        )
    both = [*train, *heldout]
    good = sum(example.good for example in both)
    if not train or not 0 < sum(example.good for example in train) < len(train):
        raise ConfigError(
            "data.thumbs" if config.reads_thumbs else "data.preferences",
            got=f"{good} good and {len(both) - good} bad answers to train on",
            allowed="some of both",
        )
    counts = {
        **counts,
        "answers": len(train),
        "heldout_answers": len(heldout),
        "good": good,
        "bad": len(both) - good,
        "prompts": len({example.prompt for example in both}),
    }
    return Examples(train, heldout, counts)


def _mismatched(answers: Sequence[Example], seed: int, *, max_tokens: int) -> tuple[Example, ...]:
    """Give each answer the next one to another prompt, in a drawn order; its own if there is no other
    prompt.
    """
    order = seeds.permutation(len(answers), seed, "mismatched")
    others = next_others([answers[index].prompt for index in order])
    matched_with = {index: order[other] for index, other in zip(order, others, strict=True)}
    found = []
    for index, example in enumerate(answers):
        sequence, another = example.sequences[0], answers[matched_with[index]].sequences[0]
        prompt = sequence.token_ids[: sequence.prompt_length]
        answer = another.token_ids[another.prompt_length :]
        matched = (sequence, _joined(prompt, answer, max_tokens=max_tokens))
        found.append(Example(matched, (), good=example.good, prompt=example.prompt))
    return tuple(found)


def next_others(prompts: Sequence[str]) -> list[int]:
    """Return for each place in a circle the next one with another prompt; its own place if there is none."""
    count = len(prompts)
    found = list(range(count))
    nearest: int | None = None
    for place in range(2 * count - 2, -1, -1):
        following = (place + 1) % count
        if prompts[following] != prompts[place % count]:
            nearest = following
        if place < count and nearest is not None:
            found[place] = nearest
    return found


def _joined(prompt: Sequence[int], answer: Sequence[int], *, max_tokens: int) -> TokenSequence:
    """Return a sequence whose prompt loses on the left what does not fit."""
    kept = prompt[-(max_tokens - len(answer)) :]
    return TokenSequence((*kept, *answer), len(kept))
