"""Load the demonstrations, preferences and prompts of a run, split into training and held-out records.

The entry point of the stages. A hash of the run's seed and the prompt decides whether a prompt is held out,
so it is the same in every file, for plain text and for a first user message. Does not know tokenizers or
torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from fairlead.config import RunConfig
from fairlead.data import sentences, sources
from fairlead.data.chat import Prompt, prompt, question
from fairlead.data.comparisons import Comparisons, Preference, comparisons
from fairlead.data.demonstrations import Demonstration, Example, example
from fairlead.errors import ConfigError

__all__ = [
    "Demonstration",
    "Preference",
    "Split",
    "is_heldout",
    "load_demonstrations",
    "load_preferences",
    "load_prompts",
]

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Split(Generic[Record]):
    """Training and held-out records, in the order of their file."""

    train: tuple[Record, ...]
    """Never empty."""
    heldout: tuple[Record, ...]
    """Empty if no prompt of a small file is held out."""


def load_demonstrations(config: RunConfig) -> Split[Example]:
    """Load `data.demonstrations`, or from `data.sentences` the first words as prompts and the rest as
    answers.

    The split key is the first user message of a conversation, plain text itself, or the answer to an empty
    prompt.

    Raises:
        ConfigError: if no file is named, it cannot be opened, or every prompt is held out.
        DataError: for an invalid line.
    """
    found: list[Example]
    if config.data.demonstrations:
        found = list(sources.read(config, "demonstrations", example))
    else:
        found = [
            Demonstration(prompt=sentence.prompt, completion=sentence.completion)
            for sentence in _sentences(config, "demonstrations").demonstrations
        ]
    return _split(config, "demonstrations", found, lambda record: record.split_key)


def load_preferences(config: RunConfig) -> Split[Comparisons]:
    """Load `data.preferences`, or pairs from `data.sentences` in which a positive sentence beats a negative
    one.

    Pairs of sentences have an empty prompt, since the two begin differently; the split key of each sentence
    is its own first words.

    Raises:
        ConfigError: if no file is named, it cannot be opened, or every prompt is held out.
        DataError: for an invalid line.
    """
    if config.data.preferences:
        parse = partial(comparisons, tie_margin=config.data.tie_margin)
        found = sources.read(config, "preferences", parse)
        return _split(config, "preferences", found, lambda record: record.split_key)
    pool = _sentences(config, "preferences").preferences
    sides = _split(config, "preferences", pool, lambda sentence: sentence.prompt)
    train, heldout = (
        tuple[Comparisons, ...](
            Preference(prompt="", chosen=chosen.text, rejected=rejected.text)
            for chosen, rejected in sentences.pairs(side, seed=config.seed)
        )
        for side in (sides.train, sides.heldout)
    )
    if not train:
        raise ConfigError(
            "data.sentences", got="sentences of only one label", allowed="sentences of both labels, 0 and 1"
        )
    return Split(train=train, heldout=heldout)


def load_prompts(config: RunConfig) -> Split[Prompt]:
    """Load `data.prompts`, or from `data.sentences` the first words of each, every prompt once.

    Raises:
        ConfigError: if no file is named, it cannot be opened, or every prompt is held out.
        DataError: for an invalid line.
    """
    found: Iterable[Prompt]
    if config.data.prompts:
        found = sources.read(config, "prompts", prompt)
    else:
        pool = _sentences(config, "prompts").demonstrations
        found = dict.fromkeys(sentence.prompt for sentence in pool)
    return _split(config, "prompts", found, question)


def is_heldout(config: RunConfig, prompt: str) -> bool:
    """Return whether a prompt is held out in this run."""
    digest = hashlib.sha256(f"{config.seed}\0heldout\0{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < config.data.heldout_fraction * 2**64


def _sentences(config: RunConfig, kind: str) -> sentences.Parts:
    if not config.data.sentences:
        raise ConfigError(
            f"data.{kind}", got="no file", allowed="a file of JSON lines in this key or in data.sentences"
        )
    found = sources.read(config, "sentences", sentences.labelled)
    return sentences.divide(found, prompt_words=config.data.prompt_words, seed=config.seed)


def _split(
    config: RunConfig, kind: str, records: Iterable[Record], prompt_of: Callable[[Record], str]
) -> Split[Record]:
    train: list[Record] = []
    heldout: list[Record] = []
    for record in records:
        (heldout if is_heldout(config, prompt_of(record)) else train).append(record)
    if not train:
        raise ConfigError(
            f"data.{kind}",
            got=f"{len(heldout)} records, all held out",
            allowed="more prompts, or a smaller data.heldout_fraction",
        )
    return Split(train=tuple(train), heldout=tuple(heldout))
