"""Keys of the last release that were renamed or removed, and the warnings for them.

`load` applies it to the file, the environment and the flags, each before they are merged. An entry stays for
one release after the key was retired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_LIMITS = ("max_message_bytes", "max_in_flight_bytes", "max_connection_age_seconds", "drain_seconds")

RENAMED: Mapping[str, str] = {
    "queue.password": "queue.redis_password",
    "queue.tls_ca": "queue.redis_tls_ca",
    "queue.tls_certificate": "queue.redis_tls_certificate",
    "queue.tls_key": "queue.redis_tls_key",
}
"""Old key → new key: the value moves."""

OVERRIDES: Mapping[str, str] = {
    f"{service}.{limit}": f"server.{limit}"
    for service in ("policy", "reward", "reference", "weights")
    for limit in _LIMITS
} | {"gateway.drain_seconds": "server.drain_seconds"}
"""Old key of one service → new key of all: the value stays where it is and overrides the new key for that
service."""

REMOVED: Mapping[str, object] = {
    "policy.watch_seconds": 0.2,
    "gateway.watch_seconds": 2.0,
    "reward.stream_max_requests": 256,
    "reward.batching.bulk_patience_seconds": 1.0,
    "reference.batching.bulk_patience_seconds": 1.0,
    "reward.triton.health_seconds": 1.0,
    "gateway.chat_log_bytes": 64 << 20,
    "weights.cache_versions": 2,
    "weights.lease_seconds": 5.0,
    "weights.give_up_seconds": 60.0,
    "keys.reload_seconds": 0.0,
}
"""Key → the value that is now fixed: the value is dropped."""


def known() -> frozenset[str]:
    """Return every retired key that is still accepted."""
    return frozenset((*RENAMED, *OVERRIDES, *REMOVED))


def apply(values: dict[str, Any], *, named: Callable[[str], str] = str) -> list[str]:
    """Replace retired keys in the values of one source, and return a warning for each that was found.

    Args:
        values: nested tables, as read; changed in place.
        named: how the source spells a dotted key, for the warnings.
    """
    warnings = []
    for old, new in RENAMED.items():
        if _has(values, old):
            value = _pop(values, old)
            if _has(values, new):
                warnings.append(f"{named(old)} is ignored, because {named(new)} is set too")
            else:
                _put(values, new, value)
                warnings.append(f"{named(old)} is deprecated: use {named(new)}")
    for old, new in OVERRIDES.items():
        if _has(values, old):
            warnings.append(f"{named(old)} is deprecated: use {named(new)}, which applies to every server")
    for old, fixed in REMOVED.items():
        if _has(values, old):
            _pop(values, old)
            warnings.append(f"{named(old)} no longer has an effect: the value is fixed at {fixed}")
    return warnings


def _table(values: dict[str, Any], key: str) -> dict[str, Any] | None:
    """Return the table that holds the last part of a key; None if there is none."""
    table: Any = values
    for part in key.split(".")[:-1]:
        table = table.get(part) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else None


def _has(values: dict[str, Any], key: str) -> bool:
    table = _table(values, key)
    return table is not None and key.rpartition(".")[2] in table


def _pop(values: dict[str, Any], key: str) -> object:
    table = _table(values, key)
    assert table is not None
    return table.pop(key.rpartition(".")[2])


def _put(values: dict[str, Any], key: str, value: object) -> None:
    # A renamed key stays in its section, which is there: the old key was in it.
    table = _table(values, key)
    assert table is not None
    table[key.rpartition(".")[2]] = value
