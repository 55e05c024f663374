"""Labelled sentences, `{"text", "label"}`, divided among the stages and a judge.

The three parts share no sentence: one is continued (SFT and PPO prompts), one is compared (reward model), and
one is used by neither, so that a judge trained on its labels is independent of both.
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
"""Number of pairs that each sentence appears in."""
_SHARES = (("demonstrations", 0.45), ("preferences", 0.35), ("judge", 0.20))


Labelled = tuple[str, int]
"""A sentence and its label; 1 is preferred."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A labelled sentence that is long enough to be continued."""

    text: str
    """The whole sentence, its words separated by one space."""
    label: int
    """1 is the preferred label, 0 the other."""
    prompt: str
    """The first words."""
    completion: str
    """A space and the remaining words. The space keeps byte-pair tokens the same as in the whole sentence."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A file's sentences by use; no sentence is in two parts."""

    demonstrations: tuple[Sentence, ...]
    """Continued in SFT; their first words are the prompts."""
    preferences: tuple[Sentence, ...]
    """Compared by label for the reward model."""
    judge: tuple[Sentence, ...]
    """For a judge of the answers."""


def load_parts(path: Path, *, prompt_words: int, seed: int) -> Parts:
    """Read a file of sentences.

    Raises:
        ConfigError: if the file cannot be opened.
        DataError: for an invalid line.
    """
    return divide(map(labelled, _valid(path)), prompt_words=prompt_words, seed=seed)


def labelled(line: Line) -> Labelled:
    """Return the sentence and label of a line, the words separated by one space.

    Raises:
        DataError: if a key is missing or has a value of another type.
    """
    return " ".join(line.text("text", empty=False).split()), line.binary("label")


def divide(found: Iterable[Labelled], *, prompt_words: int, seed: int) -> Parts:
    """Divide sentences by use. Repeated ones, and those without a word after the prompt, are left out."""
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
    """Draw (label 1, label 0) pairs at random; every sentence of the smaller class is in PARTNERS of them.

    Pairs of equal length would teach nothing about length, and PPO exploited that by writing ever shorter
    sentences. Random pairs teach that length does not matter.
    """
    rng = random.Random(f"{seed} pairs")
    found: list[tuple[Sentence, Sentence]] = []
    for _ in range(PARTNERS):
        chosen, rejected = (
            rng.sample(group, k=len(group))
            for group in ([sentence for sentence in pool if sentence.label == label] for label in (1, 0))
        )
        # Each pass shuffles again, so the unused surplus of the larger class changes too.
        found += zip(chosen, rejected, strict=False)
    return found


def _valid(path: Path) -> Iterator[Line]:
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
