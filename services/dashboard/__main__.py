"""Start the live page of a run: `python -m services.dashboard RUN --listen HOST:PORT`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from fairlead import log
from fairlead.config import RunFolder
from fairlead.config.http import HttpSection
from fairlead.errors import ConfigError, FairleadError, exit_code
from fairlead.rpc.credentials import is_loopback
from services.dashboard.app import make_app
from services.dashboard.visitors import Visitors
from services.dashboard.watch import RunWatch
from services.runtime.http.server import HttpServer

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 2.0


async def run(folder: RunFolder, listen: str) -> None:
    """Serve the page until a signal.

    Raises:
        ConfigError: the address cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        section = HttpSection(bind=listen)
        server = await stack.enter_async_context(
            HttpServer(section, name="dashboard", drain_seconds=_DRAIN_SECONDS)
        )
        key = "" if is_loopback(server.address) else secrets.token_urlsafe(24)
        watch = RunWatch(folder, stopped=lambda: server.draining)
        watching = asyncio.create_task(watch.run(), name="watch")
        stack.callback(watching.cancel)
        app = make_app(watch, Visitors(key), section)
        link = f"http://{server.address}/" + (f"?key={key}" if key else "")
        sys.stdout.write(f"{folder.root}: {link}\n")
        sys.stdout.flush()
        if key:
            logger.warning(
                "the page at %s is open to everyone who has its link, and is not encrypted; "
                "`ssh -L` to a loopback address is safer",
                server.address,
            )
        await server.serve(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags and serve; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.dashboard")
    parser.add_argument("run", type=Path, help="the folder of the run")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    flags = parser.parse_args(argv)
    log.setup()
    try:
        if not flags.run.is_dir():
            raise ConfigError("run", got=str(flags.run), allowed="the folder of a run")
        asyncio.run(run(RunFolder(flags.run), flags.listen))
    except FairleadError as error:
        sys.stderr.write(f"dashboard: {error}\n".replace("dashboard.bind", "--listen"))
        return exit_code(error)
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
