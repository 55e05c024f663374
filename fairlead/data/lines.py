"""Files of JSON lines, plain or gzipped, whatever their records are.

Under `records` and `sentences`; every mistake in a file is an error that names the file, the line, what
stands there and what may stand there. Nothing here knows what a record means.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.errors import ConfigError, DataError

_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Line:
    """One JSON object of a file."""

    file: str
    """Path of the file."""
    number: int
    """From 1."""
    values: dict[str, Any]
    """What stands there."""
    inside: str = ""
    """Where in the line the object stands, such as `messages[2].`; empty for the line itself."""

    def text(self, key: str, *, empty: bool = True) -> str:
        """The text under a key.

        Raises:
            DataError: it is absent, no string, or blank where that is not allowed.
        """
        value = self._value(key)
        if not isinstance(value, str):
            name = self.inside + key
            raise self.error(got=f"`{name}` of type {_type(value)}", allowed=f"`{name}` of type string")
        if not empty and not value.strip():
            raise self.error(got=f"`{key}` without a word", allowed=f"`{key}` with text in it")
        return value

    def number_at(self, key: str) -> float:
        """The finite number under a key.

        Raises:
            DataError: it is absent or anything else.
        """
        value = self._value(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            name = self.inside + key
            raise self.error(got=f"`{name}` = {value!r}", allowed=f"`{name}` a finite number")
        return float(value)

    def objects(self, key: str) -> list[Line]:
        """The objects in the array under a key, as lines that know where they stand.

        Raises:
            DataError: it is absent, no array, or something in it is no object.
        """
        values = self._value(key)
        if not isinstance(values, list):
            raise self.error(got=f"`{key}` of type {_type(values)}", allowed=f"`{key}` of type array")
        for index, value in enumerate(values):
            if not isinstance(value, dict):
                raise self.error(got=f"`{key}[{index}]` of type {_type(value)}", allowed="a JSON object")
        return [
            Line(self.file, self.number, value, inside=f"{key}[{index}].")
            for index, value in enumerate(values)
        ]

    def binary(self, key: str) -> int:
        """The 0 or 1 under a key.

        Raises:
            DataError: it is absent or anything else.
        """
        value = self._value(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or value not in (0, 1):
            raise self.error(got=f"`{key}` = {value!r}", allowed=f"`{key}` = 0 or 1")
        return int(value)

    def error(self, *, got: str, allowed: str) -> DataError:
        """An error about this line."""
        return DataError(self.file, self.number, got=got, allowed=allowed)

    def _value(self, key: str) -> object:
        if key not in self.values:
            where = f" in `{self.inside[:-1]}`" if self.inside else ""
            raise self.error(
                got=f"the keys {', '.join(self.values) or 'none'}{where}", allowed=f"a key `{key}`"
            )
        return self.values[key]


def read_lines(path: Path, *, field: str) -> Iterator[Line]:
    """The objects of a file in order; blank lines are passed over. Gzip is recognised by its first bytes.

    Args:
        path: the file.
        field: the setting that names it, for errors.

    Raises:
        ConfigError: it is absent, a folder, or cannot be opened.
        DataError: a line that is no JSON object, not UTF-8, a gzip that is cut off, no line at all.
    """
    file = str(path)
    number = 0
    found = False
    try:
        with path.open("rb") as raw:
            packed = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if packed else nullcontext(raw) as stream:
                for number, content in enumerate(stream, start=1):
                    if content.strip():
                        found = True
                        yield Line(file, number, _object(file, number, content))
    except FileNotFoundError:
        raise ConfigError(field, got=file, allowed="a file that exists") from None
    except IsADirectoryError:
        raise ConfigError(field, got=f"{file}, a folder", allowed="a file of JSON lines") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(file, number + 1, got=f"a damaged gzip: {error}", allowed="a whole file") from error
    except OSError as error:
        raise ConfigError(field, got=f"{file}: {error.strerror}", allowed="a readable file") from error
    if not found:
        raise DataError(file, 1, got="an empty file", allowed="a JSON object a line")


def _object(file: str, number: int, content: bytes) -> dict[str, Any]:
    try:
        # A byte-order mark is what some editors put first; it is not part of the text.
        value = json.loads(content.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        bad = content[error.start]
        raise DataError(
            file, number, got=f"byte 0x{bad:02x} at position {error.start}", allowed="UTF-8"
        ) from None
    except (json.JSONDecodeError, RecursionError) as error:
        shown = content.decode("utf-8", "replace").strip()
        raise DataError(file, number, got=shown, allowed=f"a JSON object ({error})") from None
    if not isinstance(value, dict):
        raise DataError(file, number, got=f"JSON of type {_type(value)}", allowed="a JSON object")
    return value


def _type(value: object) -> str:
    names = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "null")
