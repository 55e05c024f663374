"""One JSON object of a file, with typed access to its values and errors that name file, line and value.

Used by every data format. Knows neither what a record means nor the kind of file that it came from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fairlead.errors import DataError

_NO_VALUES: tuple[Any, ...] = (None, "", [], {}, 0, "[]", "{}", "null")
"""What a key without a value may have; tables often hold JSON as text."""


@dataclass(frozen=True, slots=True)
class Line:
    """One JSON object of a file, or one row of a table."""

    file: str
    """Path of the file, or name of the dataset."""
    number: int
    """Line number, from 1."""
    values: dict[str, Any]
    """Parsed JSON object."""
    inside: str = ""
    """Path of a nested object within the line, such as `messages[2].`; empty for the line itself."""
    renamed: tuple[tuple[str, str], ...] = ()
    """(path in `values`, path in the file) of values that `foreign` has translated, for errors."""
    keys: tuple[str, ...] | None = None
    """Keys of the line in the file, if it was translated."""

    def has(self, key: str) -> bool:
        """Return whether a key has a value. Null counts as absent: a table has every column in every row."""
        return self.values.get(key) is not None

    def text(self, key: str, *, empty: bool = True) -> str:
        """Return the text under a key.

        Raises:
            DataError: if it is absent, not a string, invalid Unicode, or blank where that is not allowed.
        """
        value, name = self._value(key), self.inside + key
        if not isinstance(value, str):
            raise self.error(got=f"`{name}` of type {_type(value)}", allowed=f"`{name}` of type string")
        if not empty and not value.strip():
            raise self.error(got=f"blank `{name}`", allowed=f"`{name}` with text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.error(
                got=f"`{name}` with an unpaired surrogate at character {error.start}",
                allowed="complete surrogate pairs, such as \\ud83d\\ude00",
            ) from None
        return value

    def number_at(self, key: str) -> float:
        """Return the finite number under a key.

        Raises:
            DataError: if it is absent or of another type.
        """
        value = self._value(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                if math.isfinite(number := float(value)):
                    return number
            except OverflowError:
                pass
        name = self.inside + key
        raise self.error(got=f"`{name}` = {value!r}", allowed=f"a finite number in `{name}`")

    def identifier(self, key: str) -> str:
        """Return the id under a key: text that is not blank, or a whole number, as text.

        Raises:
            DataError: if it is absent or another value.
        """
        value = self._value(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.text(key, empty=False)

    def objects(self, key: str) -> list[Line]:
        """Return the objects in the array under a key, each as a line that knows its position.

        Raises:
            DataError: if it is absent, not an array, or an element is not an object.
        """
        values = self._value(key)
        if not isinstance(values, list):
            raise self.error(got=f"`{key}` of type {_type(values)}", allowed=f"`{key}` of type array")
        for index, value in enumerate(values):
            if not isinstance(value, dict):
                raise self.error(got=f"`{key}[{index}]` of type {_type(value)}", allowed="a JSON object")
        return [
            Line(self.file, self.number, value, inside=f"{key}[{index}].", renamed=self.renamed)
            for index, value in enumerate(values)
        ]

    def binary(self, key: str) -> int:
        """Return the 0 or 1 under a key.

        Raises:
            DataError: if it is absent or another value.
        """
        value, name = self._value(key), self.inside + key
        if not isinstance(value, int | float) or isinstance(value, bool) or value not in (0, 1):
            raise self.error(got=f"`{name}` = {value!r}", allowed=f"`{name}` = 0 or 1")
        return int(value)

    def boolean(self, key: str) -> bool:
        """Return the boolean under a key; 0 and 1 are read as such too.

        Raises:
            DataError: if it is absent or another value.
        """
        value, name = self._value(key), self.inside + key
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise self.error(got=f"`{name}` = {value!r}", allowed=f"`{name}` = true or false")
        return bool(value)

    def refuse(self, keys: Iterable[str]) -> None:
        """Refuse the keys, whose values would be left unread, unless they have none.

        Raises:
            DataError: for the first key with a value; an empty one, also as the text `[]`, counts as none.
        """
        for key in keys:
            if self.values.get(key) not in _NO_VALUES:
                raise self.error(
                    got=f"`{self.inside}{key}`, which is not read",
                    allowed=f"no `{key}`: remove it, or write it into `content` as the model should see it",
                )

    def error(self, *, got: str, allowed: str) -> DataError:
        """Return an error about this line, in the names of the file."""
        for ours, theirs in self.renamed:
            got, allowed = (text.replace(f"`{ours}`", f"`{theirs}`") for text in (got, allowed))
        return DataError(self.file, self.number, got=got, allowed=allowed)

    def _value(self, key: str) -> object:
        if key not in self.values:
            where = f" in `{self.inside[:-1]}`" if self.inside else ""
            raise self.error(
                got=f"the keys {', '.join(self.keys or self.values) or 'none'}{where}",
                allowed=f"a key `{key}`",
            )
        return self.values[key]


def parse(file: str, number: int, content: bytes) -> Line | DataError:
    """Return the JSON object of a line, or the error that describes what is wrong with it."""
    try:
        # Some editors write a byte-order mark first; it is not part of the text.
        value = json.loads(content.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        bad = content[error.start]
        utf16 = number == 1 and content.startswith((b"\xff\xfe", b"\xfe\xff"))
        hint = "; this is UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`" if utf16 else ""
        return DataError(
            file, number, got=f"byte 0x{bad:02x} at position {error.start}", allowed=f"UTF-8{hint}"
        )
    # ValueError, which JSONDecodeError is not the only kind of: an integer of thousands of digits.
    except (ValueError, RecursionError) as error:
        shown = content.decode("utf-8", "replace").strip()
        hints = {
            "[": "; convert a JSON array to lines with `jq -c '.[]'`",
            "{": "; put each object on one line with `jq -c .`",
        }
        # A line that only opens a bracket belongs to a file that is formatted over several lines.
        hint = hints.get(shown[:1], "") if number == 1 and (shown[:1] == "[" or shown == "{") else ""
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
