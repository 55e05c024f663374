"""The kinds of sources that `[data]` names, what a line of each becomes, and what a file looks like.

For `check`, which treats all kinds alike; the stages ask `records`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from fairlead.config import RunConfig
from fairlead.data import sources
from fairlead.data.chat import Chat, question
from fairlead.data.comparisons import Preference, comparisons
from fairlead.data.demonstrations import FORMATS, Demonstration, example
from fairlead.data.lengths import Record
from fairlead.data.lines import Line
from fairlead.data.prompts import prompt
from fairlead.data.sentences import labelled
from fairlead.errors import DataError

KINDS = ("demonstrations", "preferences", "prompts", "sentences")
"""What `[data]` may name."""
_PEEK_LINES = 100


class Found(NamedTuple):
    """A line that can be read."""

    record: Record
    """What it holds."""
    split_key: str
    """Decides its side."""
    format: str
    """Which of the kind's formats it has, for people."""


def parser(config: RunConfig, kind: str) -> Callable[[Line], Found]:
    """What makes a record of a line of a kind; raises DataError for a bad one."""

    def demonstration(line: Line) -> Found:
        record = example(line)
        return Found(record, record.split_key, FORMATS[type(record)])

    def comparison(line: Line) -> Found:
        record = comparisons(line, tie_margin=config.data.tie_margin)
        form = "chosen, rejected" if isinstance(record, Preference) else "responses"
        turns = ", as messages" if isinstance(record.prompt, Chat) else ""
        return Found(record, record.split_key, form + turns)

    def asked(line: Line) -> Found:
        record = prompt(line)
        return Found(record, question(record), "messages" if isinstance(record, Chat) else "prompt")

    def sentence(line: Line) -> Found:
        text, label = labelled(line)
        words = text.split()
        cut = config.data.prompt_words
        record = Demonstration(" ".join(words[:cut]), " ".join(words[cut:]))
        return Found(record, record.prompt, f"label {label}")

    parsers = {
        "demonstrations": demonstration,
        "preferences": comparison,
        "prompts": asked,
        "sentences": sentence,
    }
    return parsers[kind]


def detect(config: RunConfig, name: str) -> str:
    """The kind of source that the first lines of a file look like.

    Raises:
        ConfigError, DataError: there is no such file, or no line of it can be read.
        InvalidInput: the lines have keys of no format.
    """
    lines = list(islice(sources.scan(config, name, field="file"), _PEEK_LINES))
    good = [line for line in lines if isinstance(line, Line)]
    if not good:
        raise next(line for line in lines if isinstance(line, DataError))
    kinds = Counter(kind for line in good if (kind := _kind(line)))
    if not kinds:
        raise good[0].error(
            got=f"the keys {', '.join(good[0].values) or 'none'}",
            allowed="the keys of a format of docs/data.md, or --as to say which it shall be",
        )
    return kinds.most_common(1)[0][0]


def _kind(line: Line) -> str | None:
    if line.has("responses") or line.has("chosen") or line.has("rejected"):
        return "preferences"
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
