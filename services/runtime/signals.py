"""The signals that end a process of Kubernetes or of a terminal."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable


def on_stop(stop: Callable[[], None]) -> None:
    """Has SIGTERM and SIGINT call it in the running event loop; only the main thread gets signals."""
    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
