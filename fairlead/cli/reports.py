"""`fairlead report`: a page about a run."""

from __future__ import annotations

import os
import sys

import typer

from fairlead.cli.output import RunPath, need, run_folder, with_examples

_REPORT = with_examples("Write report.html and report.json of a run.", "fairlead report runs/quickstart")


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("report", help=_REPORT)(report)


def report(run: RunPath) -> None:
    """Becomes the report's process."""
    need("train")
    command = [sys.executable, "-m", "trainer.report", str(run_folder(run))]
    os.execv(command[0], command)
