"""The headers with which OpenAI's API reports the rate limits of a key, for the limits that a key has."""

from __future__ import annotations

from services.runtime.access.allowance import Bucket
from services.runtime.access.control import Caller

_PREFIX = "x-ratelimit"
NAMES = tuple(
    f"{_PREFIX}-{value}-{what}"
    for what in ("requests", "tokens")
    for value in ("limit", "remaining", "reset")
)
"""Names of the headers."""


def limit_headers(caller: Caller) -> list[tuple[bytes, bytes]]:
    """Return the headers for a response to a caller; none if its key has no rates."""
    if caller.key is None or caller.allowance is None:
        return []
    requests, tokens = caller.allowance.buckets(caller.key)
    return [*_headers("requests", requests), *_headers("tokens", tokens)]


def _headers(what: str, bucket: Bucket | None) -> list[tuple[bytes, bytes]]:
    if bucket is None:
        return []
    values = {
        "limit": str(int(bucket.capacity)),
        "remaining": str(max(0, int(bucket.level + 1e-6))),
        "reset": f"{max(0.0, bucket.capacity - bucket.level) / bucket.rate:.3f}s",
    }
    return [(f"{_PREFIX}-{name}-{what}".encode(), value.encode()) for name, value in values.items()]
