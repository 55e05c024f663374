"""Demonstrations, preferences and prompts of a run: read, checked, split into training and held-out.

The stages ask here first. A prompt is on one side for good: the side is a hash of the run's seed and the
prompt, the same in every file. Nothing here knows tokenizers or torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from fairlead.config import RunConfig
from fairlead.data import sentences
from fairlead.data.comparisons import Comparisons, Preference, comparisons
from fairlead.data.demonstrations import Demonstration, Example, example
from fairlead.data.lines import Line, read_lines
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
    """Records to train on, and records kept out of training, in the order of their file."""

    train: tuple[Record, ...]
    """Never empty."""
    heldout: tuple[Record, ...]
    """Empty if no prompt of a small file falls on this side."""


def load_demonstrations(config: RunConfig) -> Split[Example]:
    """`data.demonstrations`, or what `data.sentences` gives: the first words, and how they go on.

    A conversation is on the side of what its user says first, plain text on the side of itself.

    Raises:
        ConfigError: no file is named, it cannot be opened, or every prompt is held out.
        DataError: a bad line.
    """
    found: list[Example]
    if config.data.demonstrations:
        found = [example(line) for line in _lines(config, "demonstrations")]
    else:
        found = [
            Demonstration(prompt=sentence.prompt, completion=sentence.completion)
            for sentence in _sentences(config, "demonstrations").demonstrations
        ]
    return _split(config, "demonstrations", found, lambda record: record.prompt)


def load_preferences(config: RunConfig) -> Split[Comparisons]:
    """`data.preferences`, or what `data.sentences` gives: a positive sentence beats a negative one.

    Pairs of sentences have an empty prompt, as the two do not begin alike; each sentence of a pair is on the
    side of its own first words.

    Raises:
        ConfigError: no file is named, it cannot be opened, or every prompt is held out.
        DataError: a bad line.
    """
    if config.data.preferences:
        margin = config.data.tie_margin
        found = [comparisons(line, tie_margin=margin) for line in _lines(config, "preferences")]
        return _split(config, "preferences", found, lambda record: record.prompt)
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
        raise ConfigError("data.sentences", got="one label only", allowed="sentences of both labels, 0 and 1")
    return Split(train=train, heldout=heldout)


def load_prompts(config: RunConfig) -> Split[str]:
    """`data.prompts`, or what `data.sentences` gives: the first words, each prompt once.

    Raises:
        ConfigError: no file is named, it cannot be opened, or every prompt is held out.
        DataError: a bad line.
    """
    if config.data.prompts:
        found = [_prompt(line) for line in _lines(config, "prompts")]
    else:
        pool = _sentences(config, "prompts").demonstrations
        found = list(dict.fromkeys(sentence.prompt for sentence in pool))
    return _split(config, "prompts", found, lambda prompt: prompt)


def is_heldout(config: RunConfig, prompt: str) -> bool:
    """The side of a prompt in this run."""
    digest = hashlib.sha256(f"{config.seed}\0heldout\0{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < config.data.heldout_fraction * 2**64


def _lines(config: RunConfig, kind: str) -> Iterator[Line]:
    field = f"data.{kind}"
    named: str | tuple[str, ...] = getattr(config.data, kind)
    for path in (named,) if isinstance(named, str) else named:
        yield from read_lines(_path(config, path, field), field=field)


def _sentences(config: RunConfig, kind: str) -> sentences.Parts:
    path = _path(config, config.data.sentences, f"data.{kind}")
    return sentences.load_parts(path, prompt_words=config.data.prompt_words, seed=config.seed)


def _path(config: RunConfig, path: str, field: str) -> Path:
    if not path:
        raise ConfigError(field, got="no file", allowed="a file of JSON lines, here or in data.sentences")
    return config.data_path(path)


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
            got=f"{len(heldout)} records, every one held out",
            allowed="more prompts, or a smaller data.heldout_fraction",
        )
    return Split(train=tuple(train), heldout=tuple(heldout))


def _prompt(line: Line) -> str:
    return line.text("prompt", empty=False)
