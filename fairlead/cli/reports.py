"""Verbs that look at a run: `status` while it works, `report` when it is done."""

from __future__ import annotations

import os
import sys

import typer

from fairlead.cli.output import RunPath, need, run_folder, with_examples

_STATUS = with_examples(
    "Show what a run does now and which of its processes live.", "fairlead status runs/quickstart"
)
_REPORT = with_examples("Write report.html and report.json of a run.", "fairlead report runs/quickstart")


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.command("status", help=_STATUS)(status)
    app.command("report", help=_REPORT)(report)


def status(run: RunPath) -> None:
    """Prints progress and processes; exit code 0 whether the run works or not."""
    from fairlead.config import RunFolder
    from fairlead.local import progress, table
    from fairlead.local.view import progress_line

    folder = RunFolder(run_folder(run))
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
    command = [sys.executable, "-m", "trainer.report", str(run_folder(run))]
    os.execv(command[0], command)
