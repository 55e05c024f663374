"""A checksum in front of what lies in the queue: damage is found where protobuf would still parse it.

The sum is itself a field of the message (15, fixed32), written first instead of last, as protobuf allows:
readers that know nothing of it pass it over, and a payload that was cut short still has it.
"""

from __future__ import annotations

import zlib

from fairlead.errors import CorruptData

_TAG = b"\x7d"  # field 15, four bytes
_BARE = b"\x08"  # field 1, schema_version: how payloads of a fairlead without checksums begin
_HEAD_BYTES = 5


def sealed(message: bytes) -> bytes:
    """The message with its CRC-32 in front, little-endian."""
    return _TAG + zlib.crc32(message).to_bytes(4, "little") + message


def opened(payload: bytes, *, what: str) -> bytes:
    """The message without its checksum. One that was written without is returned as it is.

    Raises:
        CorruptData: if the sum does not hold, or the payload begins like neither kind.
    """
    if payload.startswith(_BARE):
        return payload
    if not payload.startswith(_TAG):
        raise CorruptData(
            f"not {what} ({len(payload)} bytes): it begins with {payload[:1].hex() or 'nothing'}"
        )
    stored, message = int.from_bytes(payload[1:_HEAD_BYTES], "little"), payload[_HEAD_BYTES:]
    if len(payload) < _HEAD_BYTES or zlib.crc32(message) != stored:
        raise CorruptData(f"{what} of {len(payload)} bytes does not have its checksum: damaged or cut short")
    return message
