"""What every `python -m services.<name>` does around its own work: flags, configuration, logs, exit code.

Exit codes: 0 fine, 2 a mistake that a restart does not mend, 3 fenced by a newer trainer, 4 stalled,
1 anything else.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from fairlead import config, log, watchdog
from fairlead.config import RunConfig
from fairlead.config.infrastructure import ObserveSection
from fairlead.errors import FairleadError, exit_code
from services.runtime.server import Stopped

logger = logging.getLogger(__name__)


def main(
    name: str,
    run: Callable[[RunConfig], Coroutine[None, None, None]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Reads flags and configuration, runs the process until it ends, and returns its exit code.

    Args:
        name: of the service, as in `services.<name>`.
        run: the work; returns when it has drained.
        arguments: in place of the command line.
    """
    # gRPC's own lines on standard error say less than the errors that are raised.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        settings = _configuration(name, arguments)
        log.setup(style=settings.observe.log_style, level=settings.observe.log_level)
        asyncio.run(_watched(run(settings), settings.observe))
    except Stopped:
        # A model may still be loading in a thread that nobody waits for.
        sys.stderr.flush()
        os._exit(0)
    except FairleadError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return exit_code(error)
    except KeyboardInterrupt:
        return 0
    except Exception:
        logger.exception("%s ended by an unexpected error", name)
        return 1
    return 0


async def _watched(work: Coroutine[None, None, None], observe: ObserveSection) -> None:
    """Does the work under the process's watchdog."""
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
