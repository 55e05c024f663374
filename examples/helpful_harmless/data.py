"""The files of people's and of a judge's data that the commands read, with one error where one is missing.

Lines are checked when they are read, before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairlead.data.files import scan_file
from fairlead.data.lines import Line
from fairlead.errors import ConfigError, DataError

PAIRS = "hh_rlhf/harmless.jsonl.gz"
RANKINGS = "alpaca_eval/rankings.jsonl.gz"
SENTENCES = "rotten_tomatoes/sentences.jsonl"

Pair = Mapping[str, Any]
"""`prompt`: messages; `chosen` and `rejected`: one message each."""


def data_file(data: Path, name: str) -> Path:
    """Return a file in a folder of data.

    Args:
        data: the folder.
        name: path of the file in it.

    Raises:
        ConfigError: if it is missing.
    """
    file = data / name
    if not file.is_file():
        raise ConfigError("folder of data", got=str(data), allowed=f"a folder with {name}")
    return file


def lines(file: Path) -> Iterator[Line]:
    """Yield the objects of a file of JSON lines, plain or gzipped.

    Raises:
        ConfigError: if it cannot be opened.
        DataError: for an invalid line, and if the file is damaged, truncated or empty.
    """
    for line in scan_file(file, field="folder of data"):
        if isinstance(line, DataError):
            raise line
        yield line


def pairs(file: Path) -> list[Pair]:
    """Return the pairs of a file of hh_rlhf.

    Raises:
        ConfigError: if it cannot be opened.
        DataError: for a line without a conversation that ends with the user's message and an answer on each
            side, and if the file is damaged.
    """
    return [_pair(line) for line in lines(file)]


def _pair(line: Line) -> Pair:
    roles = _roles(line, "prompt")
    if not roles or (roles[0], roles[-1]) != ("user", "user"):
        raise line.error(
            got=f"`prompt` with the roles {', '.join(roles) or 'none'}",
            allowed="messages of which the first and the last are the user's",
        )
    for side in ("chosen", "rejected"):
        if len(said := _roles(line, side)) != 1:
            raise line.error(got=f"`{side}` with {len(said)} messages", allowed="one message")
    return line.values


def _roles(line: Line, key: str) -> list[str]:
    """Return the roles of the messages under a key, which have a role and a content only."""
    roles = []
    for message in line.objects(key):
        message.text("content")
        roles.append(message.text("role", empty=False))
        if unknown := sorted(set(message.values) - {"role", "content"}):
            raise line.error(got=f"`{message.inside}{unknown[0]}`", allowed="`role` and `content`")
    return roles
