"""`fairlead dashboard` and `report`: a run as a live page in a browser, or as a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fairlead.cli.output import RunPath, need, run_folder, say, with_examples

_DASHBOARD = with_examples(
    "Show a run as a live page in a browser: its state in a sentence, reward and KL with limits, the guard, "
    "what waits for what, every process, the queue, and answers side by side. Reads the run's folder and "
    "asks its processes; changes nothing. Works on a run that has ended, too. Ctrl-C ends it.",
    "fairlead dashboard runs/quickstart",
    "fairlead dashboard runs/quickstart --listen 127.0.0.1:8600",
    "fairlead dashboard runs/quickstart --once",
)
_REPORT = with_examples(
    "Write report.html and report.json of a run; the same as `fairlead dashboard --once`.",
    "fairlead report runs/quickstart",
)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("dashboard", help=_DASHBOARD)(dashboard)
    app.command("report", help=_REPORT)(report)


def dashboard(
    run: RunPath,
    listen: Annotated[
        str,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            help="Address of the page; port 0 is any free one. Any other than a loopback address needs the "
            "key in the link that is printed.",
        ),
    ] = "127.0.0.1:0",
    once: Annotated[bool, typer.Option("--once", help="Write the page as report.html, and end.")] = False,
) -> None:
    """Run services.dashboard in place of this process."""
    folder = run_folder(run)
    if once:
        report(run)
        return
    need("dashboard")
    command = [sys.executable, "-m", "services.dashboard", str(folder), "--listen", listen]
    sys.stdout.flush()
    os.execv(command[0], command)


def report(run: RunPath) -> None:
    """Write the report and print its path."""
    import asyncio

    from fairlead.config import RunFolder

    folder = RunFolder(Path(run_folder(run)))
    need("report")
    from fairlead.local.status import read_status
    from fairlead.report.run_report import write_report

    write_report(folder, asyncio.run(read_status(folder)))
    say(str(folder.report_html), err=True)
