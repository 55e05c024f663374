"""A checksum before each payload of the queue: it finds damage that protobuf would parse without an error.

The checksum is itself a field of the message (15, fixed32), written first instead of last, which protobuf
allows: readers that do not know it skip it, and a truncated payload still has it.
"""

from __future__ import annotations

import zlib

from fairlead.errors import CorruptData

_TAG = b"\x7d"  # field 15, four bytes
_BARE = b"\x08"  # field 1, schema_version: the first byte of payloads of versions without checksums
_HEAD_BYTES = 5


def with_checksum(message: bytes) -> bytes:
    """Return the message after its CRC-32 (little-endian)."""
    return _TAG + zlib.crc32(message).to_bytes(4, "little") + message


def without_checksum(payload: bytes, *, what: str) -> bytes:
    """Return the message without its checksum. A payload without a checksum is returned unchanged.

    Raises:
        CorruptData: if the checksum is wrong, or the first byte is that of neither kind.
    """
    if payload.startswith(_BARE):
        return payload
    if not payload.startswith(_TAG):
        raise CorruptData(
            f"not {what} ({len(payload)} bytes): the first byte is {payload[:1].hex() or 'missing'}"
        )
    stored = int.from_bytes(payload[1:_HEAD_BYTES], "little")
    message = payload[_HEAD_BYTES:]
    if len(payload) < _HEAD_BYTES or zlib.crc32(message) != stored:
        raise CorruptData(f"{what} of {len(payload)} bytes does not match its checksum: damaged or truncated")
    return message
