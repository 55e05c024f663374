"""A file of labelled sentences, `{"text", "label"}`, cut into what the stages and a judge need.

Three parts without a common sentence: one is continued (SFT and PPO prompts), one is compared (reward model),
and one is seen by neither, so that a judge trained on its labels is independent of both.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead.data.files import scan_file
from fairlead.data.lines import Line
from fairlead.errors import DataError

PARTNERS = 2
"""Pairs that a sentence is in."""
_SHARES = (("demonstrations", 0.45), ("preferences", 0.35), ("judge", 0.20))


Labelled = tuple[str, int]
"""A sentence and its label, 1 for the one preferred."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A labelled sentence that is long enough to be continued."""

    text: str
    """The whole, its words one space apart."""
    label: int
    """1 is the label preferred, 0 the other."""
    prompt: str
    """Its first words."""
    completion: str
    """A space and the rest: the space keeps byte-pair tokens the same as in the whole sentence."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A file's sentences by use; none is in two parts."""

    demonstrations: tuple[Sentence, ...]
    """Continued in SFT; their first words are the prompts."""
    preferences: tuple[Sentence, ...]
    """Compared by label for the reward model."""
    judge: tuple[Sentence, ...]
    """For a judge of the answers."""


def load_parts(path: Path, *, prompt_words: int, seed: int) -> Parts:
    """Reads a file of sentences.

    Raises:
        ConfigError: the file cannot be opened.
        DataError: a bad line.
    """
    return divide(map(labelled, _good(path)), prompt_words=prompt_words, seed=seed)


def labelled(line: Line) -> Labelled:
    """The sentence of a line, its words one space apart.

    Raises:
        DataError: a key is missing or holds something else.
    """
    return " ".join(line.text("text", empty=False).split()), line.binary("label")


def divide(found: Iterable[Labelled], *, prompt_words: int, seed: int) -> Parts:
    """Sentences by use. Those without a word after the prompt, and repeated ones, are left out."""
    parts: dict[str, list[Sentence]] = {name: [] for name, _ in _SHARES}
    seen: set[str] = set()
    for text, label in found:
        words = text.split()
        if len(words) <= prompt_words or text in seen:
            continue
        seen.add(text)
        sentence = Sentence(
            text=text,
            label=label,
            prompt=" ".join(words[:prompt_words]),
            completion=" " + " ".join(words[prompt_words:]),
        )
        parts[_part(text, seed)].append(sentence)
    return Parts(**{name: tuple(found) for name, found in parts.items()})


def pairs(pool: Sequence[Sentence], *, seed: int) -> list[tuple[Sentence, Sentence]]:
    """(label 1, label 0) pairs, drawn at random; every sentence of the smaller class is in PARTNERS of them.

    Pairs of like length would say nothing about length, and PPO would find out what a reward model makes of
    that: it wrote ever shorter sentences. Random pairs say that length does not matter.
    """
    rng = random.Random(f"{seed} pairs")
    found: list[tuple[Sentence, Sentence]] = []
    for _ in range(PARTNERS):
        chosen, rejected = (
            rng.sample(group, k=len(group))
            for group in ([sentence for sentence in pool if sentence.label == label] for label in (1, 0))
        )
        # Shuffled anew in every pass; the surplus of the larger class changes with it.
        found += zip(chosen, rejected, strict=False)
    return found


def _good(path: Path) -> Iterator[Line]:
    for line in scan_file(path, field="data.sentences"):
        if isinstance(line, DataError):
            raise line
        yield line


def _part(text: str, seed: int) -> str:
    digest = hashlib.sha256(f"{seed}\0part\0{text}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for name, share in _SHARES:
        position -= share
        if position < 0:
            return name
    return _SHARES[-1][0]
