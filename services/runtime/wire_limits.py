"""Check the size of a serialized protobuf request before it is parsed: entries, fields, numbers.

The scan walks over tags and lengths, creates no message, and stops at the first limit that is exceeded. It
does not check whether the bytes are valid; the parser does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from fairlead.errors import InvalidInput, NotFound

_SCANNED_BYTES = 1 << 10
"""Smaller requests are not checked: parsing one costs less than the scan."""
_MAX_FIELDS = 100_000
_MAX_NUMBERS = 1 << 20
_MAX_TEXT_BYTES = 1 << 20
_MAX_UNKNOWN_BYTES = 1 << 16
"""Limit on a field that this version does not know."""
_BLOCK_BYTES = 1 << 16
_VARINT = 0
_LENGTH = 2
_WIDTHS = {1: 8, 5: 4}
"""Bytes of the values of fixed width, by wire type."""
_CONTINUED = bytes(range(0x80, 0x100))
"""Bytes of a varint that are not its last."""
_FIXED_BYTES = {
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
    FieldDescriptor.TYPE_BOOL: 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WireLimits:
    """What a request may contain."""

    entries: Mapping[str, int] = field(default_factory=dict)
    """Maximum number of entries of a repeated field, by its full name: `fairlead.v1.ScoreRequest.items`."""
    max_fields: int = _MAX_FIELDS
    """Maximum number of fields of all messages in the request; a packed field counts as one."""
    max_numbers: int = _MAX_NUMBERS
    """Maximum number of numbers in packed fields, such as token ids."""
    max_text_bytes: int = _MAX_TEXT_BYTES
    """Maximum size of a text. Fields of type `bytes` have no limit but that of the message."""
    whole: frozenset[str] = frozenset()
    """Full names of the repeated fields whose entries are requests in their own right: `max_numbers` holds
    for each of them, small ones are not checked, and `entries` limits their number."""
    names: frozenset[str] = frozenset()
    """Full names of the text fields that name a model or version: a larger one is not found, not invalid."""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    full_name: str
    child: Descriptor | None
    """The message that the field holds, if it does."""
    number_bytes: int | None
    """Size of a number of a packed field; 0 for varints, None if the field holds no numbers."""
    is_text: bool


def check_wire(method: str, body: bytes, limits: WireLimits) -> None:
    """Check that the serialized request of an RPC is within limits.

    Args:
        method: full name, such as `/fairlead.v1.RewardService/Score`.
        body: the request.
        limits: what it may contain.

    Raises:
        InvalidInput: names the field that exceeds a limit.
    """
    if len(body) < _SCANNED_BYTES:
        return
    descriptor = _request_of(method)
    if descriptor is not None:
        _Scan(body, limits).message(0, len(body), descriptor, "")


class _Scan:
    """The state of one scan."""

    def __init__(self, body: bytes, limits: WireLimits) -> None:
        self._body = body
        self._limits = limits
        self._fields = 0
        self._numbers = 0
        self._index: int | None = None
        """The entry of a list of the request that is being checked."""

    def message(self, position: int, end: int, descriptor: Descriptor, path: str) -> None:
        """Check the message between two positions.

        Args:
            position: where it starts.
            end: where it ends.
            descriptor: describes it.
            path: the fields that lead to it, each followed by a dot.
        """
        known = _fields_of(descriptor)
        counts: Counter[str] = Counter()
        while position < end:
            tag, position = self._varint(position)
            found = known.get(tag >> 3)
            self._count_field(path if found is None else path + found.name)
            start, position = self._value(tag & 7, position)
            if position > end:
                continue  # truncated: the parser refuses it
            self._check_size(found, position - start, path)
            if found is None:
                continue
            count = 1
            if found.child is not None:
                if not path:
                    self._index = counts[found.name] if found.full_name in self._limits.entries else None
                self._child(found, start, position, path)
            elif found.number_bytes is not None and tag & 7 == _LENGTH:
                count = self._count_numbers(start, position, found.number_bytes, path + found.name)
            limit = self._limits.entries.get(found.full_name)
            if limit is not None:
                counts[found.name] += count
                if counts[found.name] > limit:
                    got = f"more than {limit} entries"
                    raise self._refused(path + found.name, got=got, allowed=f"at most {limit}")

    def _child(self, found: _Field, start: int, end: int, path: str) -> None:
        """Check the message that a field holds."""
        assert found.child is not None
        if found.full_name in self._limits.whole:
            if end - start < _SCANNED_BYTES:
                return
            self._numbers = 0
        self.message(start, end, found.child, f"{path}{found.name}.")

    def _value(self, wire_type: int, position: int) -> tuple[int, int]:
        """Return where the value of a field starts and ends."""
        if wire_type == _VARINT:
            return position, self._varint(position)[1]
        if wire_type == _LENGTH:
            size, start = self._varint(position)
            return start, start + size
        if wire_type in _WIDTHS:
            return position, position + _WIDTHS[wire_type]
        raise self._refused("request", got=f"wire type {wire_type}", allowed="a serialized request")

    def _check_size(self, found: _Field | None, size: int, path: str) -> None:
        limit = self._limits.max_text_bytes
        if found is None:
            if size > _MAX_UNKNOWN_BYTES:
                got = f"an unknown field of {size} bytes"
                raise self._refused(path.rstrip("."), got=got, allowed="the fields of the protocol")
        elif found.is_text and size > limit:
            if found.full_name in self._limits.names:
                raise NotFound(f"{path}{found.name}: no name of {size} bytes is known")
            got = f"{size} bytes"
            raise self._refused(path + found.name, got=got, allowed=f"at most {limit} bytes of UTF-8")

    def _count_field(self, name: str) -> None:
        self._fields += 1
        limit = self._limits.max_fields
        if self._fields > limit:
            allowed = f"at most {limit} in one request"
            raise self._refused(name.rstrip("."), got=f"more than {limit} fields", allowed=allowed)

    def _count_numbers(self, start: int, end: int, number_bytes: int, name: str) -> int:
        """Count the numbers of a packed field; return how many there are."""
        if number_bytes:
            count = (end - start) // number_bytes
        else:
            blocks = range(start, end, _BLOCK_BYTES)
            parts = (self._body[begin : min(begin + _BLOCK_BYTES, end)] for begin in blocks)
            count = sum(len(part.translate(None, _CONTINUED)) for part in parts)
        self._numbers += count
        limit = self._limits.max_numbers
        if self._numbers > limit:
            allowed = f"at most {limit} in one request"
            raise self._refused(name, got=f"more than {limit} numbers", allowed=allowed)
        return count

    def _refused(self, field: str, *, got: str, allowed: str) -> InvalidInput:
        """Return the error for a field, with its entry where it is part of a list of the request."""
        index = self._index if "." in field else None
        # A stream's request holds that of the call without a stream: both name the same field.
        name = field.removeprefix("request.") or "request"
        return InvalidInput(name, index=index, got=got, allowed=allowed)

    def _varint(self, position: int) -> tuple[int, int]:
        body = self._body
        value = shift = 0
        while position < len(body) and shift < 70:
            byte = body[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
        return 0, len(body)  # truncated: the parser refuses it


@cache
def _request_of(method: str) -> Descriptor | None:
    service, _, name = method.removeprefix("/").partition("/")
    try:
        found = descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        return None
    rpc = found.methods_by_name.get(name)
    return None if rpc is None else rpc.input_type


@cache
def _fields_of(descriptor: Descriptor) -> dict[int, _Field]:
    return {
        each.number: _Field(
            each.name, each.full_name, each.message_type, _number_bytes(each), each.type == each.TYPE_STRING
        )
        for each in descriptor.fields
    }


def _number_bytes(described: FieldDescriptor) -> int | None:
    if described.type in (
        FieldDescriptor.TYPE_STRING,
        FieldDescriptor.TYPE_BYTES,
        FieldDescriptor.TYPE_MESSAGE,
        FieldDescriptor.TYPE_GROUP,
    ):
        return None
    return _FIXED_BYTES.get(described.type, 0)
