"""Verbs that look at a run: `status` while it works, `report` when it is done."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fairlead.cli.output import fail, need

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, such as runs/quickstart.")]

_STATUS = """Show what a run does now and which of its processes live.

Example:

    fairlead status runs/quickstart
"""
_REPORT = """Write report.html and report.json of a run.

Example:

    fairlead report runs/quickstart
"""


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.command("status", help=_STATUS)(status)
    app.command("report", help=_REPORT)(report)


def status(run: RunPath) -> None:
    """Prints progress and processes; exit code 0 whether the run works or not."""
    from fairlead.config import RunFolder
    from fairlead.local import progress, table
    from fairlead.local.view import progress_line

    folder = RunFolder(_existing(run))
    now = progress.read(folder.progress)
    typer.echo(progress_line(now) if now else "no stage has said anything yet")
    alive = table.running(folder.processes, mark=str(folder.root.absolute()))
    for name, pid in alive.items():
        typer.echo(f"{name:<20} {pid}")
    if not alive:
        typer.echo("no process of it is running")


def report(run: RunPath) -> None:
    """Becomes the report's process."""
    need("train")
    command = [sys.executable, "-m", "trainer.report", str(_existing(run))]
    os.execv(command[0], command)


def _existing(run: Path) -> Path:
    if not run.is_dir():
        fail(f"run: got {str(run)!r}, allowed: the folder of a run")
    return run
