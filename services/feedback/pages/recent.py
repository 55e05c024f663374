"""Values that are kept for a short time, because they take long to compute."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values by key, each no older than a limit."""

    def __init__(self, seconds: float) -> None:
        """
        Args:
            seconds: greatest age.
        """
        self._seconds = seconds
        self._found: dict[Key, tuple[float, Value]] = {}

    def get(self, key: Key, compute: Callable[[], Value]) -> Value:
        """Return the value of a key, computed if there is none or it is too old."""
        known = self._found.get(key)
        if known is not None and time.monotonic() - known[0] < self._seconds:
            return known[1]
        value = compute()
        self._found[key] = (time.monotonic(), value)
        return value
