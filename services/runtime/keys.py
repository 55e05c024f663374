"""The ring of API keys: who is it that calls? Reads its file again when that changes.

At the edge of every service, gRPC or HTTP. Knows no request, only the value of its `authorization`.
"""

from __future__ import annotations

import hmac
import logging
import os
import time
from pathlib import Path

from fairlead import metrics
from fairlead.config.infrastructure import KeysSection
from fairlead.errors import ConfigError, InvalidInput, Unauthenticated
from fairlead.rpc import api_keys
from fairlead.rpc.api_keys import ApiKey as Key
from fairlead.rpc.api_keys import KeyFile

logger = logging.getLogger(__name__)

__all__ = ["Key", "KeyRing"]

_NOBODY = "0" * 64
"""Compared with when there is no such id, so that an unknown id takes as long as a wrong secret."""


class KeyRing:
    """The keys that are valid now."""

    def __init__(self, section: KeysSection, *, counts: metrics.AccessMetrics) -> None:
        """Reads the file.

        Raises:
            ConfigError: if it cannot be read.
        """
        self._path = Path(section.file)
        self._reload_seconds = section.reload_seconds
        self._counts = counts
        self._looked_at = time.monotonic()
        self._state = _state(self._path)
        try:
            self._keys = _by_id(api_keys.read(self._path))
        except InvalidInput as error:
            raise ConfigError("keys.file", got=f"{error.where}: {error.got}", allowed=error.allowed) from None
        logger.info("%d API keys from %s", len(self._keys), self._path)

    def authenticate(self, bearer: str | None) -> Key:
        """The key that a caller holds.

        Args:
            bearer: the value of the header or metadata `authorization`, `Bearer fl_…`; None if there is none.

        Raises:
            Unauthenticated: if it is missing, unknown, wrong, revoked or out of date.
        """
        self._reload_if_changed()
        scheme, _, presented = (bearer or "").strip().partition(" ")
        presented = presented.strip()
        if scheme.lower() != "bearer" or not presented:
            raise self._refusal("missing", "no API key: send `authorization: Bearer fl_…`")
        key = self._keys.get(api_keys.id_of(presented))
        expected = key.sha256 if key is not None else _NOBODY
        fits = hmac.compare_digest(api_keys.sha256_of(presented), expected)
        if key is None or not fits:
            raise self._refusal("wrong", "this API key is not known here")
        self._check_valid(key)
        return key

    def check(self, key: Key) -> None:
        """Checks that a key that was shown a while ago is still good: a stream may last for hours.

        Raises:
            Unauthenticated: if it is not.
        """
        self._reload_if_changed()
        current = self._keys.get(key.id)
        if current is None or current.sha256 != key.sha256:
            raise self._refusal("wrong", "this API key is no longer known here")
        self._check_valid(current)

    def _check_valid(self, key: Key) -> None:
        try:
            key.check_valid()
        except Unauthenticated:
            self._counts.refusals.labels(reason="revoked" if key.revoked else "expired").inc()
            raise

    def _refusal(self, reason: str, message: str) -> Unauthenticated:
        self._counts.refusals.labels(reason=reason).inc()
        return Unauthenticated(message)

    def _reload_if_changed(self) -> None:
        """Takes a file that has changed; one that is damaged or gone leaves the keys as they are."""
        now = time.monotonic()
        if now - self._looked_at < self._reload_seconds:
            return
        self._looked_at = now
        state = _state(self._path)
        if state == self._state:
            return
        # Before the file is read: what is written meanwhile is another change.
        self._state = state
        try:
            self._keys = _by_id(api_keys.read(self._path))
        except InvalidInput as error:
            self._counts.key_file_failures.inc()
            logger.error("the API keys stay as they were: %s", error)
        else:
            logger.info("%d API keys from %s", len(self._keys), self._path)


def _by_id(file: KeyFile) -> dict[str, Key]:
    return {key.id: key for key in file.keys}


def _state(path: Path) -> tuple[int, ...]:
    """What differs after a change, also of links, as a mounted Secret swaps them; empty if it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
