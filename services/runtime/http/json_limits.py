"""Check the size of a JSON body before it is parsed: entries of each list, keys, values, numbers.

The scan creates no object for a value of the body and stops at the first limit that is exceeded, so that a
refusal costs neither time nor memory. It does not check whether the JSON is valid; the parser does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fairlead.errors import InvalidInput

MAX_DEPTH = 200
"""Levels of nesting that the parser accepts."""
MAX_KEYS = 1_024
"""Keys of one object."""
MAX_KEY_BYTES = 1_024
"""Size of a key."""
MAX_VALUES = 120_000
"""Keys, texts, lists, objects and literals of one body, numbers excluded: 20 turns in each of 1,024 items."""

_RUN = 1 << 16
_BYTES_PER_CHARACTER = 6
"""Bytes of a character of one byte that is escaped by its number."""
_TOKEN = re.compile(
    rb"[ \t\r\n]*+(?:"
    rb'(?P<text>"[^"\\]{0,%(run)d}+"[ \t\r\n]*+:?+)'
    rb"|(?P<mark>[\[\]{},:])"
    rb"|(?P<numbers>[-+.0-9][-+.0-9eE, \t\r\n]{0,%(run)d}+)"
    rb'|(?P<long>")'
    rb"|(?P<other>[^\s\[\]{},:\"]{1,16}+))" % {b"run": _RUN}
)
_COLON_BYTE = b":"[0]
_COLON = re.compile(rb"[ \t\r\n]*+:")
_ESCAPED = re.compile(rb'(?:[^"\\]{1,4096}+|\\.){0,4096}+', re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """What the bodies of a route may contain. A path names the keys and has `[]` after each list:
    `items[].messages`.
    """

    entries: Mapping[str, int] = field(default_factory=dict)
    """Maximum number of entries of the list at a path, numbers excluded."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Maximum number of numbers of the list at a path."""
    max_text_bytes: int = 1 << 20
    """Maximum size of a text in UTF-8. The scan is generous: in JSON, a character may take six bytes."""
    max_values: int = MAX_VALUES
    """Maximum number of keys, texts, lists, objects and literals of the whole body."""
    max_numbers: int = 10_000
    """Maximum number of numbers of the whole body."""


class _Container:
    """An open list or object."""

    __slots__ = ("count", "is_list", "key", "max_entries", "max_numbers", "numbers", "path")

    def __init__(self, path: str, limits: BodyLimits, *, is_list: bool) -> None:
        self.path = path
        self.is_list = is_list
        self.key = ""
        self.count = 0
        self.numbers = 0
        self.max_entries = limits.entries.get(path, limits.max_values) if is_list else MAX_KEYS
        self.max_numbers = limits.numbers.get(path, limits.max_numbers)

    def child_path(self) -> str:
        if self.is_list:
            return f"{self.path}[]"
        return f"{self.path}.{self.key}" if self.path else self.key


class _Scan:
    """The state of one scan."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._stack: list[_Container] = []
        self._values = 0
        self._numbers = 0

    def open(self, *, is_list: bool) -> None:
        path = self._stack[-1].child_path() if self._stack else ""
        self.value()
        if len(self._stack) >= MAX_DEPTH:
            raise InvalidInput("body", got="deeper nesting", allowed=f"at most {MAX_DEPTH} levels")
        self._stack.append(_Container(path, self._limits, is_list=is_list))

    def mark(self, byte: int) -> None:
        if byte in b"[{":
            self.open(is_list=byte == b"["[0])
        elif byte in b"]}" and self._stack:
            self._stack.pop()

    def value(self) -> None:
        self._count()
        if self._stack and self._stack[-1].is_list:
            top = self._stack[-1]
            top.count += 1
            if top.count > top.max_entries:
                raise self._too_many(top.max_entries)

    def _count(self) -> None:
        self._values += 1
        limit = self._limits.max_values
        if self._values > limit:
            allowed = f"at most {limit} in one request"
            raise InvalidInput(self._top_field(), got=f"more than {limit} values", allowed=allowed)

    def key(self, raw: bytes | bytearray) -> None:
        if len(raw) > MAX_KEY_BYTES:
            allowed = f"at most {MAX_KEY_BYTES} bytes"
            raise InvalidInput(self._top_field(), got="a longer key", allowed=allowed)
        top = self._stack[-1] if self._stack else None
        if top is None or top.is_list:
            return  # not JSON; the parser refuses it
        self._count()
        top.count += 1
        top.key = raw[:64].decode(errors="replace")
        if top.count > top.max_entries:
            got = f"an object with more than {MAX_KEYS} keys"
            place = self._place(self._stack[:-1], opened=1)
            raise InvalidInput(place, got=got, allowed=f"at most {MAX_KEYS}")

    def numbers(self, count: int) -> None:
        self._numbers += count
        if self._numbers > self._limits.max_numbers:
            allowed = f"at most {self._limits.max_numbers} in one request"
            raise InvalidInput(
                self._top_field(), got=f"more than {self._limits.max_numbers} numbers", allowed=allowed
            )
        if self._stack and self._stack[-1].is_list:
            top = self._stack[-1]
            top.numbers += count
            if top.numbers > top.max_numbers:
                raise self._too_many(top.max_numbers)

    def text_too_long(self) -> InvalidInput:
        """Return the error for a text that is longer than its limit."""
        limit = self._limits.max_text_bytes
        return InvalidInput(
            self._place(self._stack, opened=0), got="a longer text", allowed=f"at most {limit} bytes of UTF-8"
        )

    def _too_many(self, limit: int) -> InvalidInput:
        return InvalidInput(
            self._place(self._stack[:-1], opened=1),
            got=f"more than {limit} entries",
            allowed=f"at most {limit}",
        )

    @staticmethod
    def _place(stack: Sequence[_Container], *, opened: int) -> str:
        """Return the path to the value at which the scan is, such as `items[3].response`.

        Args:
            stack: the lists and objects around it.
            opened: 1 if the value is a list or object, which is counted in the last list already.
        """
        place = ""
        for depth, one in enumerate(stack):
            counted = opened if depth == len(stack) - 1 else 1
            place += f"[{one.count - counted}]" if one.is_list else f".{one.key}"
        return place.removeprefix(".") or "body"

    def _top_field(self) -> str:
        return self._stack[0].key or "body" if self._stack else "body"


def check_json(data: bytes | bytearray, limits: BodyLimits) -> None:
    """Check that a body is within limits.

    Raises:
        InvalidInput: names the list or object that exceeds a limit.
    """
    scan = _Scan(limits)
    position = 0
    while token := _TOKEN.match(data, position):
        position = token.end()
        kind = token.lastgroup
        if kind == "text":
            if data[position - 1] == _COLON_BYTE:
                scan.key(token[0].strip(b" \t\r\n:")[1:-1])
            else:
                scan.value()
        elif kind == "mark":
            scan.mark(data[position - 1])
        elif kind == "numbers":
            scan.numbers(data.count(b",", token.start(), position) + 1)
        elif kind == "other":
            scan.value()
        else:
            position = _long_text(scan, data, position, limits)


def _long_text(scan: _Scan, data: bytes | bytearray, start: int, limits: BodyLimits) -> int:
    """Count a text that is long or has escapes; return the position after it."""
    end = _end_of_text(data, start, limit=_BYTES_PER_CHARACTER * limits.max_text_bytes)
    if end is None:
        raise scan.text_too_long()
    colon = _COLON.match(data, end + 1)
    if colon is None:
        scan.value()
        return end + 1
    scan.key(data[start : min(end, start + MAX_KEY_BYTES + 1)])
    return colon.end()


def _end_of_text(data: bytes | bytearray, start: int, *, limit: int) -> int | None:
    """Return the position of the quote that ends a text, or of the end of the data; None beyond the limit."""
    position = start
    while position - start <= limit:
        quote = data.find(b'"', position, start + limit + 1)
        end = min(len(data), start + limit + 1) if quote < 0 else quote
        backslash = data.find(b"\\", position, end)
        if backslash < 0:
            return None if quote < 0 and end < len(data) else end
        found = _ESCAPED.match(data, backslash)
        if found is None or found.end() == backslash:
            return len(data)  # a lone backslash at the end; the parser refuses it
        position = found.end()
    return None
