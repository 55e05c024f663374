"""Calls of the store from the event loop: each runs in a thread, and its time is measured."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from fairlead.metrics import FeedbackMetrics

_P = ParamSpec("_P")
_T = TypeVar("_T")

_THREADS = 8
"""A database with one writer gains nothing from more; readers wait for the disk."""


class StoreThreads:
    """The threads that wait for the store."""

    def __init__(self, metrics: FeedbackMetrics) -> None:
        """
        Args:
            metrics: receive the time of each call.
        """
        self._metrics = metrics
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Return the result of a call. It continues to its end if its caller is cancelled."""
        context = contextvars.copy_context()
        call = partial(context.run, self._timed, partial(function, *args, **kwargs), function.__name__)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def close(self) -> None:
        """Wait until every call has ended."""
        self._executor.shutdown(wait=True)

    def _timed(self, call: Callable[[], _T], name: str) -> _T:
        started = time.monotonic()
        try:
            return call()
        finally:
            self._metrics.store_seconds.labels(name).observe(time.monotonic() - started)
