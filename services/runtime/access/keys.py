"""Authenticate callers by the API keys of a file, which is read again when it changes.

Used at the edge of every service, gRPC or HTTP. Sees only the `authorization` of a request.
"""

from __future__ import annotations

import hmac
import logging
import os
from pathlib import Path

from fairlead import metrics
from fairlead.config.infrastructure import KeysSection
from fairlead.errors import ConfigError, InvalidInput, Unauthenticated
from fairlead.rpc import api_keys
from fairlead.rpc.api_keys import ApiKey as Key
from fairlead.rpc.api_keys import KeyFile

logger = logging.getLogger(__name__)

__all__ = ["Key", "KeyRing"]

_UNKNOWN = "0" * 64
"""Compared with the hash of a key whose id is unknown, so that the reply takes as long as for a wrong secret.
"""


class KeyRing:
    """The keys of the file."""

    def __init__(self, section: KeysSection, *, access_metrics: metrics.AccessMetrics) -> None:
        """Read the file.

        Raises:
            ConfigError: if the file cannot be read.
        """
        self._path = Path(section.file)
        self._metrics = access_metrics
        self._state = _state(self._path)
        try:
            self._keys = _by_id(api_keys.read(self._path))
        except InvalidInput as error:
            raise ConfigError("keys.file", got=f"{error.where}: {error.got}", allowed=error.allowed) from None
        self._metrics.set_keys(self._keys)
        logger.info("read %d API keys from %s", len(self._keys), self._path)

    @property
    def quotas(self) -> dict[str, int]:
        """Tokens a day of each key that has a quota, by its id."""
        return {key.id: key.tokens_per_day for key in self._keys.values() if key.tokens_per_day is not None}

    def authenticate(self, bearer: str | None) -> Key:
        """Return the key that a caller presents.

        Args:
            bearer: value of the header or metadata `authorization`, `Bearer fl_…`; None if it was not sent.

        Raises:
            Unauthenticated: if the key is missing, unknown, wrong, revoked or expired.
        """
        self._reload_if_changed()
        scheme, _, presented = (bearer or "").strip().partition(" ")
        presented = presented.strip()
        if scheme.lower() != "bearer" or not presented:
            raise self._refusal("missing", "no API key: send `authorization: Bearer fl_…`")
        key = self._keys.get(api_keys.id_of(presented))
        expected = key.sha256 if key is not None else _UNKNOWN
        matches = hmac.compare_digest(api_keys.sha256_of(presented), expected)
        if key is None or not matches:
            raise self._refusal("wrong", "unknown API key")
        self._check_valid(key)
        return key

    def check(self, key: Key) -> None:
        """Check that a key presented earlier is still valid; a stream may last for hours.

        Raises:
            Unauthenticated: if it is not.
        """
        self._reload_if_changed()
        current = self._keys.get(key.id)
        if current is None or current.sha256 != key.sha256:
            raise self._refusal("wrong", "the API key no longer exists")
        self._check_valid(current)

    def _check_valid(self, key: Key) -> None:
        try:
            key.check_valid()
        except Unauthenticated:
            self._metrics.refuse("revoked" if key.revoked else "expired", key.id)
            raise

    def _refusal(self, reason: str, message: str) -> Unauthenticated:
        self._metrics.refuse(reason)
        return Unauthenticated(message)

    def _reload_if_changed(self) -> None:
        """Read the file if it has changed; keep the current keys if it is damaged or missing.

        It is checked for every request, as one `stat` takes microseconds, so that a revoked key is refused at
        once.
        """
        state = _state(self._path)
        if state == self._state:
            return
        # Set before the file is read, so that a write during the read counts as another change.
        self._state = state
        try:
            self._keys = _by_id(api_keys.read(self._path))
        except InvalidInput as error:
            self._metrics.key_file_failures.inc()
            logger.error("cannot read the API keys, keeping the previous ones: %s", error)
        else:
            self._metrics.set_keys(self._keys)
            logger.info("read %d API keys from %s", len(self._keys), self._path)


def _by_id(file: KeyFile) -> dict[str, Key]:
    return {key.id: key for key in file.keys}


def _state(path: Path) -> tuple[int, ...]:
    """Return what a change alters, including swapped links as in a mounted Secret; empty if the file is
    missing.
    """
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
