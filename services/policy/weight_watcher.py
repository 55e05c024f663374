"""Watch the weight store, fetch and verify every newer version, and load it into the engine.

Runs in the background of a serving replica: if a version cannot be loaded, the replica keeps serving the
weights it has. Knows neither torch nor the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import NoReturn

from fairlead import metrics, tracing, watchdog
from fairlead.backoff import Backoff
from fairlead.errors import (
    CorruptWeights,
    NotFound,
    OutOfSpace,
    PermissionDenied,
    ReadOnlyDisk,
    Transient,
    Unauthenticated,
)
from fairlead.transports.weights.base import WeightSource
from fairlead.types import WeightVersion
from services.policy.engine import Engine

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 30.0
_LONGEST_AWAY_SECONDS = 2.0
"""Longest pause while the weights service does not answer, so that its return is noticed soon."""
_NOT_LOADED = (
    CorruptWeights,
    OutOfSpace,
    ReadOnlyDisk,
    Unauthenticated,
    PermissionDenied,
    OSError,
    Transient,
)
"""Errors after which a version is retried; any other error is a bug."""


class WeightWatcher:
    """Polls one weight source for one engine."""

    def __init__(
        self,
        source: WeightSource,
        engine: Engine,
        policy_metrics: metrics.PolicyMetrics,
        *,
        interval_seconds: float,
        on_loaded: Callable[[], None],
    ) -> None:
        """
        Args:
            source: the weight store.
            engine: loads the weights.
            policy_metrics: metrics of the policy service.
            interval_seconds: time between two polls.
            on_loaded: called in the event loop whenever a version has been loaded.
        """
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
        """Poll the store at once, because a request waits for newer weights."""
        self._kicked.set()

    async def run(self) -> NoReturn:
        """Watch until cancelled."""
        first_weights = contextlib.ExitStack()
        with first_weights:
            if self._engine.version is None:
                waiting = watchdog.PROCESS.waiting("weights", "the first weights in the store", limited=False)
                first_weights.enter_context(waiting)
            await self._watch(first_weights)

    async def _watch(self, first_weights: contextlib.ExitStack) -> NoReturn:
        """Poll the store in a loop; close `first_weights` as soon as the engine has weights."""
        while True:
            # Cleared before the poll, so that a kick during it causes another poll.
            self._kicked.clear()
            await self._poll()
            if self._engine.version is not None:
                first_weights.close()
            try:
                async with asyncio.timeout(self._interval_seconds):
                    await self._kicked.wait()
            except TimeoutError:
                continue

    async def _poll(self) -> None:
        version = None
        if self._failures and self._failed is None and time.monotonic() < self._retry_at:
            return
        try:
            manifest = await self._source.latest()
            if manifest is None or not self._is_wanted(manifest.version):
                return
            version = manifest.version
            with (
                tracing.part_of(tracing.update_context(version.incarnation, version.update)),
                tracing.span("swap", attributes={"fairlead.version": str(version)}),
            ):
                with tracing.span("fetch"):
                    folder = await self._source.fetch(manifest)
                with tracing.span("load"):
                    await self._engine.load(version, folder, adapter=manifest.adapter, probe=manifest.probe)
        except NotFound:
            self.kick()  # pruned while it was fetched, so there is a newer version by now
            return
        except _NOT_LOADED as error:
            self._record_failure(version, error)
            return
        self._failed = None
        self._failures = 0
        self._on_loaded()

    def _is_wanted(self, version: WeightVersion) -> bool:
        in_use = self._engine.version
        if in_use is not None and version <= in_use:
            return False
        return version != self._failed or time.monotonic() >= self._retry_at

    def _record_failure(self, version: WeightVersion | None, error: Exception) -> None:
        self._metrics.fetch_failures.inc()
        self._failures = self._failures + 1 if version == self._failed else 1
        self._failed = version
        longest = _LONGEST_AWAY_SECONDS if isinstance(error, Transient) else _LONGEST_PAUSE_SECONDS
        backoff = Backoff(first_seconds=2 * self._interval_seconds, longest_seconds=longest)
        # Without jitter: replicas do not poll in step anyway.
        delay = backoff.longest_pause_seconds(self._failures)
        self._retry_at = time.monotonic() + delay
        logger.warning(
            "weights %s not loaded, %s remain in use: %s",
            version or "unknown",
            self._engine.version or "none",
            error,
            extra={"failures": self._failures, "retry_seconds": delay},
        )
