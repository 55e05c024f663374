"""One JSON object of a file: what stands in it, and errors that say where it stands.

Under every format; a mistake is an error that names the file, the line, what stands there and what may stand
there. Nothing here knows what a record means, or what kind of file it came from.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from fairlead.errors import DataError


@dataclass(frozen=True, slots=True)
class Line:
    """One JSON object of a file, or one row of a table."""

    file: str
    """Path of the file, or name of the dataset."""
    number: int
    """From 1."""
    values: dict[str, Any]
    """What stands there."""
    inside: str = ""
    """Where in the line the object stands, such as `messages[2].`; empty for the line itself."""

    def has(self, key: str) -> bool:
        """Whether anything stands under a key. Null is nothing: a table has every column in every row."""
        return self.values.get(key) is not None

    def text(self, key: str, *, empty: bool = True) -> str:
        """The text under a key.

        Raises:
            DataError: it is absent, no string, no Unicode, or blank where that is not allowed.
        """
        value, name = self._value(key), self.inside + key
        if not isinstance(value, str):
            raise self.error(got=f"`{name}` of type {_type(value)}", allowed=f"`{name}` of type string")
        if not empty and not value.strip():
            raise self.error(got=f"`{name}` without a word", allowed=f"`{name}` with text in it")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.error(
                got=f"`{name}` with half of a surrogate pair at character {error.start}",
                allowed="whole pairs, such as \\ud83d\\ude00",
            ) from None
        return value

    def number_at(self, key: str) -> float:
        """The finite number under a key.

        Raises:
            DataError: it is absent or anything else.
        """
        value = self._value(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                if math.isfinite(number := float(value)):
                    return number
            except OverflowError:
                pass
        name = self.inside + key
        raise self.error(got=f"`{name}` = {value!r}", allowed=f"`{name}` a finite number")

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


def parse(file: str, number: int, content: bytes) -> Line | DataError:
    """The JSON object that stands in a line, or what is wrong with it."""
    try:
        # A byte-order mark is what some editors put first; it is not part of the text.
        value = json.loads(content.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        bad = content[error.start]
        return DataError(file, number, got=f"byte 0x{bad:02x} at position {error.start}", allowed="UTF-8")
    # ValueError beside JSONDecodeError: a whole number of thousands of digits.
    except (ValueError, RecursionError) as error:
        shown = content.decode("utf-8", "replace").strip()
        hint = "; of an array, `jq -c '.[]'` makes lines" if number == 1 and shown.startswith("[") else ""
        return DataError(file, number, got=shown, allowed=f"a JSON object ({error}){hint}")
    if not isinstance(value, dict):
        return DataError(file, number, got=f"JSON of type {_type(value)}", allowed="a JSON object")
    return Line(file, number, value)


def _type(value: object) -> str:
    names: dict[type, str] = {
        str: "string",
        bool: "boolean",
        int: "number",
        float: "number",
        list: "array",
        dict: "object",
        bytes: "binary",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
