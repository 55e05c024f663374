"""Where a sender takes bytes from: shards that are whole, or verified up to a point that moves on.

Between the store of the origin or the cache of a replica, which are shelves, and `sender.py`. Knows no wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import Protocol

from fairlead.types import WeightVersion


class Progress:
    """How far a shard that is being fetched has been verified. Belongs to one event loop."""

    def __init__(self, verified_bytes: int = 0) -> None:
        self.verified_bytes = verified_bytes
        self.closed = False
        self._changed = asyncio.Event()

    def advance(self, verified_bytes: int) -> None:
        """More has been verified."""
        self.verified_bytes = verified_bytes
        self._notify()

    def close(self) -> None:
        """Nothing more comes."""
        self.closed = True
        self._notify()

    async def wait_beyond(self, offset_bytes: int, *, timeout_seconds: float) -> int:
        """Verified bytes once they are more than `offset_bytes`, or when time is up or nothing more comes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self.verified_bytes <= offset_bytes and not self.closed:
                    await self._changed.wait()
        return self.verified_bytes

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass(frozen=True, slots=True)
class OpenShard:
    """A shard that is being read; it stays readable when its version is deleted meanwhile."""

    descriptor: int
    """Of the open file."""
    size_bytes: int
    """Length of the whole shard."""
    progress: Progress | None = None
    """How much is there; None: all."""

    def close(self) -> None:
        """Closes the file."""
        os.close(self.descriptor)


class Shelf(Protocol):
    """Holds versions."""

    def open(self, version: WeightVersion, shard: str) -> OpenShard:
        """Opens a shard by its name in the manifest.

        Raises:
            NotFound: if the version is not here, or has no such shard.
        """
        ...
