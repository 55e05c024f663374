"""Load the demonstrations, preferences, thumbs and prompts of a run, split into training and held-out
records.

The entry point of the stages. Held-out records come from a source of their own, or a hash of the run's seed
and the prompt decides, so it is the same in every file, for plain text and for a first user message. Does not
know tokenizers or torch.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from fairlead.config import RunConfig
from fairlead.data import sentences, sources
from fairlead.data.chat import Prompt, prompt, question
from fairlead.data.comparisons import Comparisons, Preference, comparisons
from fairlead.data.demonstrations import Demonstration, Example, example
from fairlead.data.lines import Line
from fairlead.data.thumbs import Thumb, thumb
from fairlead.errors import ConfigError

__all__ = [
    "Demonstration",
    "Preference",
    "Split",
    "is_heldout",
    "load_demonstrations",
    "load_preferences",
    "load_prompts",
    "load_thumbs",
]

logger = logging.getLogger(__name__)

Record = TypeVar("Record")

HELDOUT_KINDS = ("demonstrations", "preferences", "thumbs", "prompts")
"""Kinds of data whose held-out records may have sources of their own."""


@dataclass(frozen=True, slots=True)
class Split(Generic[Record]):
    """Training and held-out records, in the order of their file."""

    train: tuple[Record, ...]
    """Never empty."""
    heldout: tuple[Record, ...]
    """Empty if no prompt of a small file is held out. In the order of their own file if they have one."""


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
        found = list(_measured_by_people(config, "demonstrations", example, lambda record: record.split_key))
    else:
        found = [
            Demonstration(prompt=sentence.prompt, completion=sentence.completion)
            for sentence in _sentences(config, "demonstrations").demonstrations
        ]
    return _split(config, "demonstrations", found, example, lambda record: record.split_key)


def load_preferences(config: RunConfig) -> Split[Comparisons]:
    """Load `data.preferences`, or pairs from `data.sentences` in which a positive sentence beats a negative
    one.

    Pairs of sentences have an empty prompt, since the two begin differently; the split key of each sentence
    is its own first words.

    Raises:
        ConfigError: if no file is named, it cannot be opened, or every prompt is held out.
        DataError: for an invalid line.
    """
    parse = partial(comparisons, tie_margin=config.data.tie_margin)
    if config.data.preferences:
        found = _measured_by_people(config, "preferences", parse, lambda record: record.split_key)
        return _split(config, "preferences", found, parse, lambda record: record.split_key)
    pool = _sentences(config, "preferences").preferences
    if heldout_names(config, "preferences"):
        known = _pairs(config, pool)
        return _split(config, "preferences", known, parse, lambda record: record.split_key)
    train, heldout = _sides(config, "preferences", pool, lambda sentence: sentence.prompt)
    return Split(train=_pairs(config, train), heldout=_pairs(config, heldout, train=False))


def load_thumbs(config: RunConfig) -> Split[Thumb]:
    """Load `data.thumbs`, answers that are good or bad.

    Raises:
        ConfigError: if no file is named, it cannot be opened, or every prompt is held out.
        DataError: for an invalid line.
    """
    if not config.data.thumbs:
        raise ConfigError("data.thumbs", got="no file", allowed="a file of JSON lines in this key")
    found = sources.read(config, "thumbs", thumb)
    return _split(config, "thumbs", found, thumb, lambda record: record.split_key)


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
    return _split(config, "prompts", found, prompt, question)


def heldout_names(config: RunConfig, kind: str) -> tuple[str, ...]:
    """Return the sources of held-out records of a kind; empty if they are a fraction of its other sources."""
    return sources.names(config, heldout_key(kind)) if kind in HELDOUT_KINDS else ()


def heldout_key(kind: str) -> str:
    """Return the key of `[data]` that names the held-out sources of a kind."""
    return f"heldout_{kind}"


def is_heldout(config: RunConfig, prompt: str) -> bool:
    """Return whether the seed and `data.heldout_fraction` hold a prompt out in this run."""
    digest = hashlib.sha256(f"{config.seed}\0heldout\0{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < config.data.heldout_fraction * 2**64


def near(split_key: str) -> str:
    """Return the text that decides the side of the split without case and white space, to compare prompts."""
    return " ".join(split_key.casefold().split())


def _sentences(config: RunConfig, kind: str) -> sentences.Parts:
    if not config.data.sentences:
        raise ConfigError(
            f"data.{kind}", got="no file", allowed="a file of JSON lines in this key or in data.sentences"
        )
    found = sources.read(config, "sentences", sentences.labelled)
    return sentences.divide(found, prompt_words=config.data.prompt_words, seed=config.seed)


def _pairs(
    config: RunConfig, pool: Sequence[sentences.Sentence], *, train: bool = True
) -> tuple[Comparisons, ...]:
    """Return pairs of sentences of different labels."""
    found = tuple(
        Preference(prompt="", chosen=chosen.text, rejected=rejected.text)
        for chosen, rejected in sentences.pairs(pool, seed=config.seed)
    )
    if train and not found:
        raise ConfigError(
            "data.sentences", got="sentences of only one label", allowed="sentences of both labels, 0 and 1"
        )
    return found


def _measured_by_people(
    config: RunConfig,
    kind: str,
    parse: Callable[[Line], Record],
    prompt_of: Callable[[Record], str],
) -> Iterator[Record]:
    """Yield the records of a kind, without those of model judges whose prompt is held out: judges label, and
    only people measure. Lines of the feedback service say in `kind` who wrote them.
    """
    left_out = 0
    split = not heldout_names(config, kind)
    for record, judged in sources.read(config, kind, _marked(parse)):
        if judged and split and is_heldout(config, prompt_of(record)):
            left_out += 1
        else:
            yield record
    if left_out:
        logger.info(
            "data.%s: %d lines of model judges have held-out prompts and are left out", kind, left_out
        )


def _marked(parse: Callable[[Line], Record]) -> Callable[[Line], tuple[Record, bool]]:
    """Return a parser that also says whether a model judge wrote the line."""
    return lambda line: (parse(line), line.values.get("kind") == "judge")


def _split(
    config: RunConfig,
    kind: str,
    records: Iterable[Record],
    parse: Callable[[Line], Record],
    prompt_of: Callable[[Record], str],
) -> Split[Record]:
    """Split records, or read the held-out ones with `parse` from their own source."""
    if not heldout_names(config, kind):
        return Split(*_sides(config, kind, records, prompt_of))
    train = tuple(records)
    found = sources.read(config, heldout_key(kind), _marked(parse))
    heldout = tuple(record for record, judged in found if not judged)
    known = {near(prompt_of(record)) for record in train}
    if both := sum(near(prompt_of(record)) in known for record in heldout):
        logger.warning(
            "data.%s: %d of %d records have a prompt of data.%s, so the held-out figures are too good",
            *(heldout_key(kind), both, len(heldout), kind),
        )
    return Split(train=train, heldout=heldout)


def _sides(
    config: RunConfig, kind: str, records: Iterable[Record], prompt_of: Callable[[Record], str]
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
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
    return tuple(train), tuple(heldout)
