"""The process of `python -m services.<name>`: flags, configuration, logs, signals, watchdog, exit code.

Exit codes: 0 finished, 2 an error that a restart does not fix, 3 fenced by a newer trainer, 4 stalled, 1 any
other error. Knows nothing about servers or services.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry

from fairlead import config, log, tracing, watchdog
from fairlead.config import RunConfig
from fairlead.config.infrastructure import ObserveSection
from fairlead.errors import FairleadError, exit_code
from fairlead.metrics import RunMetrics, TraceMetrics

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """SIGTERM or SIGINT arrived before the service was ready; the process exits with 0."""


def main(
    name: str,
    run: Callable[[RunConfig], Coroutine[None, None, None]],
    arguments: Sequence[str] | None = None,
    *,
    registry: CollectorRegistry = REGISTRY,
) -> int:
    """Read flags and configuration, run the service until it ends, and return the exit code.

    Args:
        name: name of the service, as in `services.<name>`.
        run: runs the service; returns after the drain.
        arguments: used instead of the command line.
        registry: gets the metrics that every process has.
    """
    # gRPC's own lines on standard error are less useful than the errors raised here.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        # Warnings about the configuration come before it says how to log.
        log.setup()
        settings = _configuration(name, arguments)
        log.setup(
            style=settings.observe.log_style,
            level=settings.observe.log_level,
            fields={"run": settings.name},
        )
        RunMetrics(settings, registry=registry)
        with tracing.start(
            settings.observe, run=settings.name, process=name, counter=lambda: TraceMetrics(registry).count
        ):
            asyncio.run(_watched(run(settings), settings.observe))
    except Stopped:
        # A thread may still be loading a model; exit without waiting for it.
        sys.stderr.flush()
        os._exit(0)
    except FairleadError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return exit_code(error)
    except KeyboardInterrupt:
        return 0
    except Exception:
        logger.exception("%s failed with an unexpected error", name)
        return 1
    return 0


def on_stop(stop: Callable[[], None]) -> None:
    """Call a function in the running event loop on SIGTERM and SIGINT.

    Only the main thread receives signals; in any other thread this does nothing.
    """
    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)


async def _watched(work: Coroutine[None, None, None], observe: ObserveSection) -> None:
    """Run the work under the watchdog of the process."""
    stop = watchdog.PROCESS.start(limit_seconds=observe.stall_seconds)
    beat = asyncio.create_task(watchdog.PROCESS.beat(), name="beat")
    try:
        await work
    finally:
        beat.cancel()
        stop()


def _configuration(name: str, arguments: Sequence[str] | None) -> RunConfig:
    parser = argparse.ArgumentParser(prog=f"python -m services.{name}")
    parser.add_argument("--config", type=Path, help="the run's TOML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="overrides one setting"
    )
    flags = parser.parse_args(arguments)
    return config.load(flags.config, overrides=config.parse_overrides(flags.set))
