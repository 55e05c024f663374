"""The kinds of sources that `[data]` names, the parser of each, and detection of a file's kind.

Used by `check`, which treats all kinds alike; the stages use `records`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from fairlead.config import RunConfig
from fairlead.data import sources
from fairlead.data.chat import Chat, prompt, question
from fairlead.data.comparisons import Preference, comparisons
from fairlead.data.demonstrations import FORMATS, Demonstration, example
from fairlead.data.foreign import native, translated
from fairlead.data.lengths import Record
from fairlead.data.lines import Line
from fairlead.data.sentences import labelled
from fairlead.data.thumbs import thumb
from fairlead.errors import DataError

KINDS = ("demonstrations", "preferences", "thumbs", "prompts", "sentences")
"""Kinds of sources in `[data]`."""
_PEEK_LINES = 100


class Found(NamedTuple):
    """A valid line."""

    record: Record
    """Its record."""
    split_key: str
    """Text that decides the side of the split."""
    format: str
    """Name of its format, for the report."""


def parser(config: RunConfig, kind: str) -> Callable[[Line], Found]:
    """Return the parser of lines of a kind; it raises DataError for an invalid line."""

    def demonstration(line: Line) -> Found:
        record = example(line)
        return Found(record, record.split_key, FORMATS[type(record)] + _origin(line))

    def comparison(line: Line) -> Found:
        record = comparisons(line, tie_margin=config.data.tie_margin)
        form = "chosen, rejected" if isinstance(record, Preference) else "responses"
        turns = ", as messages" if isinstance(record.prompt, Chat) else ""
        return Found(record, record.split_key, form + turns + _origin(line))

    def prompt_line(line: Line) -> Found:
        record = prompt(line)
        form = "messages" if isinstance(record, Chat) else "prompt"
        return Found(record, question(record), form + _origin(line))

    def thumb_line(line: Line) -> Found:
        record = thumb(line)
        form = "messages" if isinstance(record.prompt, Chat) else "completion"
        return Found(record, record.split_key, f"{form}, label {str(record.good).lower()}" + _origin(line))

    def sentence(line: Line) -> Found:
        text, label = labelled(line)
        words = text.split()
        cut = config.data.prompt_words
        record = Demonstration(" ".join(words[:cut]), " ".join(words[cut:]))
        return Found(record, record.prompt, f"label {label}")

    parsers = {
        "demonstrations": demonstration,
        "preferences": comparison,
        "thumbs": thumb_line,
        "prompts": prompt_line,
        "sentences": sentence,
    }
    return parsers[kind]


def detect(config: RunConfig, name: str) -> str:
    """Return the kind of source that the first lines of a file look like.

    Raises:
        ConfigError, DataError: if there is no such file, or none of its lines is valid.
        InvalidInput: if the keys of the lines belong to no format.
    """
    lines = list(islice(sources.scan(config, name, field="file"), _PEEK_LINES))
    good = [line for line in lines if isinstance(line, Line)]
    if not good:
        raise next(line for line in lines if isinstance(line, DataError))
    ours = [sources.attempt(line, native) for line in good]
    kinds = Counter(kind for line in ours if isinstance(line, Line) and (kind := _kind(line)))
    if not kinds:
        if isinstance(ours[0], DataError):
            raise ours[0]
        raise good[0].error(
            got=f"the keys {', '.join(good[0].values) or 'none'}",
            allowed="the keys of a format in docs/data.md, or --as to name the kind",
        )
    return kinds.most_common(1)[0][0]


def _origin(line: Line) -> str:
    found = translated(line)
    return f" ({found.name})" if found else ""


def _kind(line: Line) -> str | None:
    if line.has("responses") or line.has("chosen") or line.has("rejected"):
        return "preferences"
    if line.has("label") and (line.has("completion") or line.has("messages")):
        return "thumbs"
    if line.has("completion"):
        return "demonstrations"
    if line.has("messages"):
        turns = line.values["messages"]
        said = isinstance(turns, list) and any(
            isinstance(turn, dict) and turn.get("role") == "assistant" for turn in turns
        )
        return "demonstrations" if said else "prompts"
    if line.has("text"):
        return "sentences" if line.has("label") else "demonstrations"
    return "prompts" if line.has("prompt") else None
