"""Watches the weight store and brings every newer version into the engine, fetched and verified beforehand.

Stands between store and engine, in the background of a serving replica: whatever goes wrong with a version,
the replica keeps serving the one it has. Knows neither torch nor the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import NoReturn

from fairlead import metrics, watchdog
from fairlead.errors import (
    CorruptWeights,
    DeadlineExceeded,
    NotFound,
    OutOfSpace,
    Overloaded,
    PermissionDenied,
    ReadOnlyDisk,
    Unauthenticated,
    Unavailable,
)
from fairlead.transports.weights.base import WeightSource
from fairlead.types import WeightVersion
from services.policy.engine import Engine

logger = logging.getLogger(__name__)

_MAX_BACKOFF_SECONDS = 30.0
_MAX_AWAY_SECONDS = 2.0
"""A weights service that comes back is found again within so long."""
_AWAY = (Unavailable, DeadlineExceeded, Overloaded)
_NOT_TAKEN = (CorruptWeights, OutOfSpace, ReadOnlyDisk, Unauthenticated, PermissionDenied, OSError, *_AWAY)
"""Whatever goes wrong with a version, but for bugs."""


class WeightWatcher:
    """Polls one source for one engine."""

    def __init__(
        self,
        source: WeightSource,
        engine: Engine,
        policy_metrics: metrics.PolicyMetrics,
        *,
        interval_seconds: float,
        on_loaded: Callable[[], None],
    ) -> None:
        """`on_loaded` is called on the loop whenever a version that was current has come into use."""
        self._source = source
        self._engine = engine
        self._metrics = policy_metrics
        self._interval_seconds = interval_seconds
        self._on_loaded = on_loaded
        self._kicked = asyncio.Event()
        self._failed: WeightVersion | None = None
        self._failures = 0
        self._retry_at = 0.0

    def kick(self, _: WeightVersion | None = None) -> None:
        """Looks at the store at once: a request waits for newer weights."""
        self._kicked.set()

    async def run(self) -> NoReturn:
        """Watches until cancelled."""
        first = contextlib.ExitStack()
        with first:
            if self._engine.version is None:
                waiting = watchdog.PROCESS.waiting("weights", "the first weights in the store", limited=False)
                first.enter_context(waiting)
            await self._watch(first)

    async def _watch(self, first: contextlib.ExitStack) -> NoReturn:
        """`first` is closed when there are weights."""
        while True:
            # Cleared first: a kick while looking is answered by looking again.
            self._kicked.clear()
            await self._look()
            if self._engine.version is not None:
                first.close()
            try:
                async with asyncio.timeout(self._interval_seconds):
                    await self._kicked.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        version = None
        if self._failures and self._failed is None and time.monotonic() < self._retry_at:
            return
        try:
            manifest = await self._source.latest()
            if manifest is None or not self._is_wanted(manifest.version):
                return
            version = manifest.version
            folder = await self._source.fetch(manifest)
            await self._engine.load(version, folder, adapter=manifest.adapter)
        except NotFound:
            self.kick()  # pruned while it was fetched: the current one is another by now
            return
        except _NOT_TAKEN as error:
            self._failure(version, error)
            return
        self._failed, self._failures = None, 0
        self._on_loaded()

    def _is_wanted(self, version: WeightVersion) -> bool:
        held = self._engine.version
        if held is not None and version <= held:
            return False
        return version != self._failed or time.monotonic() >= self._retry_at

    def _failure(self, version: WeightVersion | None, error: Exception) -> None:
        self._metrics.fetch_failures.inc()
        self._failures = self._failures + 1 if version == self._failed else 1
        self._failed = version
        longest = _MAX_AWAY_SECONDS if isinstance(error, _AWAY) else _MAX_BACKOFF_SECONDS
        delay = min(longest, self._interval_seconds * 2.0 ** min(self._failures, 20))
        self._retry_at = time.monotonic() + delay
        logger.warning(
            "weights %s not taken, %s stay in use: %s",
            version or "unknown",
            self._engine.version or "none",
            error,
            extra={"failures": self._failures, "retry_seconds": delay},
        )
