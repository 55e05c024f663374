"""`fairlead status`: what a run is doing, or how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import Json, RunPath, run_folder, with_examples

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from fairlead.config import RunFolder
    from fairlead.local.status import RunStatus

_STATUS = with_examples(
    "Show what a run is doing, or how it ended.\n\n"
    "Shows what is wrong first; then progress, reward, KL and their course, the guard, staleness and queue, "
    "and every process with its health, what it waits for and the version that it serves. Works on a run "
    "that is running, has finished, was stopped or has crashed.",
    "fairlead status runs/quickstart",
    "fairlead status runs/quickstart --watch",
    "fairlead status runs/quickstart --json",
)

_WATCH_SECONDS = 1.0


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("status", help=_STATUS)(status)


def status(
    run: RunPath,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep showing it until the run ends or Ctrl-C is pressed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the status; the exit code is 0 in every state."""
    from rich.console import Console

    from fairlead.config import RunFolder

    folder = RunFolder(run_folder(run))
    console = Console(highlight=False)
    if watch:
        _watch(folder, console, as_json=as_json)
    elif as_json:
        typer.echo(json.dumps(as_dict(_read(folder)), indent=2))
    else:
        console.print(render(_read(folder), console.width))


def as_dict(found: RunStatus) -> dict[str, object]:
    """Return the status as `--json` writes it."""
    return dataclasses.asdict(found)


def render(found: RunStatus, width: int) -> Text:
    """Return the status as text of at most `width` columns."""
    from fairlead.local.screen import draw

    return draw(found, width)


def _watch(folder: RunFolder, console: Console, *, as_json: bool) -> None:
    """Show the run until it ends: a live display on a terminal, else a block or JSON line at every change."""
    from rich.live import Live

    from fairlead.local.status import StatusReader

    live = Live(console=console, auto_refresh=False)
    shown: tuple[object, ...] = ()
    with live if console.is_terminal and not as_json else contextlib.nullcontext():
        reader = StatusReader(folder)
        while True:
            found = asyncio.run(reader.read())
            now = found.progress
            if as_json or not console.is_terminal:
                news = (found.state, found.reason, now and (now.stage, now.step))
                if news != shown and as_json:
                    typer.echo(json.dumps(as_dict(found)))
                elif news != shown:
                    console.print(render(found, console.width))
                shown = news
            else:
                live.update(render(found, console.width), refresh=True)
            if found.state not in ("running", "unknown", "new"):
                return
            time.sleep(_WATCH_SECONDS)


def _read(folder: RunFolder) -> RunStatus:
    from fairlead.local.status import read_status

    return asyncio.run(read_status(folder))
