"""Watches a folder and brings every newer reward model into service, loaded and tried beforehand.

In the background of a serving replica: whatever is wrong with a model, the replica keeps the one it has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import NoReturn

from services.reward import model_folder
from services.reward.model_folder import Version
from services.reward.swapping import SwappingScoring

logger = logging.getLogger(__name__)

_MAX_BACKOFF_SECONDS = 300.0


class ModelWatcher:
    """One folder for one scoring."""

    def __init__(self, folder: Path, scoring: SwappingScoring, *, interval_seconds: float) -> None:
        """`folder` is the one that the scoring's first model came from."""
        self._folder, self._scoring = folder, scoring
        self._interval_seconds = interval_seconds
        self._served: Version | None = None
        self._seen: Version | None = None
        self._failed: Version | None = None
        self._failures = 0
        self._retry_at = 0.0

    async def run(self) -> NoReturn:
        """Watches until cancelled."""
        while True:
            try:
                await self._look()
            except OSError as error:
                logger.warning("%s cannot be read: %s", self._folder, error)
            await asyncio.sleep(self._interval_seconds)

    async def _look(self) -> None:
        found = await asyncio.to_thread(model_folder.newest, self._folder)
        settled, self._seen = found == self._seen, found
        if found is None or found == self._served or not settled:
            return
        if found == self._failed and time.monotonic() < self._retry_at:
            return
        try:
            # What the replica began with is found to be the same, and costs no more than a load.
            await self._scoring.load(str(found.path))
        except Exception as error:  # noqa: BLE001 - tried again, later and later
            self._failure(found, error)
            return
        self._served, self._failed, self._failures = found, None, 0

    def _failure(self, found: Version, error: Exception) -> None:
        self._failures = self._failures + 1 if found == self._failed else 1
        self._failed = found
        delay = min(_MAX_BACKOFF_SECONDS, self._interval_seconds * 2.0**self._failures)
        self._retry_at = time.monotonic() + delay
        logger.warning(
            "%s is not taken, what is served stays: %s",
            found.path,
            error,
            extra={"failures": self._failures, "retry_seconds": delay},
        )
