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
    from rich.console import Console, RenderableType
    from rich.table import Table

    from fairlead.config import RunFolder
    from fairlead.local.status import RunStatus, ServiceStatus

_STATUS = with_examples(
    "Show what a run is doing, or how it ended.\n\n"
    "Shows stage, progress, reward, KL, staleness and queue; every process with its health and the version "
    "that it serves; and the last error. Works on a run that is running, has finished, was stopped or has "
    "crashed.",
    "fairlead status runs/quickstart",
    "fairlead status runs/quickstart --watch",
    "fairlead status runs/quickstart --json",
)

_WATCH_SECONDS = 1.0
_STATE_STYLES = {
    "running": "green",
    "finished": "green",
    "stopped": "yellow",
    "failed": "red",
    "crashed": "red",
}
_QUEUE = (("queue_waiting", "waiting"), ("queue_in_flight", "in flight"), ("queue_outcomes", "outcomes"))
_SHOWN_SEPARATELY = ("staleness_", "queue_", "guard_")


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


def render(found: RunStatus, width: int) -> RenderableType:
    """Return the status as text, in at most `width` columns if the words are short enough."""
    from rich.console import Group
    from rich.text import Text

    from fairlead.local.view import duration, figures, phase

    parts: list[RenderableType] = [_headline(found, width)]
    if found.reason:
        parts.append(Text(found.reason, style=_STATE_STYLES.get(found.state, "")))
    now = found.progress
    if now is not None:
        if found.state == "running":
            ago = f" for {duration(max(0.0, time.time() - now.since))}" if now.since else ""
            parts.append(Text.assemble((phase(now), "cyan"), (ago, "dim")))
        pairs = [pair for name, pair in figures(now).items() if not name.startswith(_SHOWN_SEPARATELY)]
        if found.rollouts_per_second is not None:
            pairs.insert(2, ("rollouts/s", f"{found.rollouts_per_second:.3g}"))
        parts.append(_figures(pairs[:10], width))
        parts += [Text(line) for line in (_staleness(now.figures), _queue(now.figures)) if line]
    parts += [Text(line, style="dim") for line in _finished(found)]
    if found.services:
        parts += [Text(), _services(found.services, width)]
    if found.last_error:
        parts.append(Text.assemble(("last error: ", "red"), found.last_error))
    return Group(*parts)


def _headline(found: RunStatus, width: int) -> RenderableType:
    from rich.text import Text

    from fairlead.local.view import duration, headline

    parts: list[str | Text] = [found.stage.replace("_", "-")] if found.stage else []
    now = found.progress
    if now is not None:
        parts.append(f"{'update' if now.stage == 'ppo' else 'step'} {now.step} of {now.total}")
        if found.state == "running" and now.eta_seconds is not None and now.step < now.total:
            parts.append(f"ETA {duration(now.eta_seconds)}")
    elif found.state == "new":
        parts.append("no stage has reported progress yet")
    if found.said_seconds_ago is not None and found.said_seconds_ago > 60:
        parts.append(f"last report {duration(found.said_seconds_ago)} ago")
    state = Text(found.state, style=_STATE_STYLES.get(found.state, "bold"))
    return headline(found.run, [state, *parts], width)


def _figures(pairs: list[tuple[str, str]], width: int) -> RenderableType:
    """Return names and values in lines that break between pairs."""
    from rich.text import Text

    lines = []
    line = Text()
    for name, value in pairs:
        pair = Text.assemble((f"{name} ", "dim"), (value, "bold"))
        if line.cell_len and line.cell_len + 3 + pair.cell_len > width:
            lines.append(line)
            line = Text()
        line.append("   " if line.cell_len else "").append_text(pair)
    return Text("\n").join([*lines, line])


def _staleness(figures: dict[str, float]) -> str:
    if "staleness_mean" not in figures:
        return ""
    return f"staleness {figures['staleness_mean']:.3g} updates, at most {figures.get('staleness_max', 0):.3g}"


def _queue(figures: dict[str, float]) -> str:
    found = [f"{figures[name]:.0f} {words}" for name, words in _QUEUE if name in figures]
    return f"queue: {', '.join(found)}" if found else ""


def _finished(found: RunStatus) -> list[str]:
    from fairlead.local.view import result_figures

    return [
        f"{stage.replace('_', '-')} has finished: {result_figures(result)}"
        for stage, result in found.finished_stages.items()
    ]


def _services(services: tuple[ServiceStatus, ...], width: int) -> Table:
    """Return a table of the processes with as many columns as fit, the most important first."""
    from rich.text import Text

    from fairlead.local.view import columns_that_fit, duration

    def health(service: ServiceStatus) -> Text:
        if service.healthy is None:
            return Text("–", "dim")
        return Text("healthy", "green") if service.healthy else Text("not ready", "yellow")

    def up(service: ServiceStatus) -> str:
        return duration(service.up_seconds) if service.up_seconds is not None else "–"

    return columns_that_fit(
        [
            ("process", [Text(service.name) for service in services]),
            (
                "state",
                [Text(service.state, "red" if service.state == "gone" else "") for service in services],
            ),
            ("health", [health(service) for service in services]),
            ("serves", [Text(service.version or "–") for service in services]),
            ("waiting for", [Text(service.waiting or "–") for service in services]),
            ("restarts", [Text(str(service.restarts)) for service in services]),
            ("pid", [Text(str(service.pid or "–")) for service in services]),
            ("up", [Text(up(service)) for service in services]),
            ("log", [Text(service.log, "dim") for service in services]),
        ],
        width,
    )


def _watch(folder: RunFolder, console: Console, *, as_json: bool) -> None:
    """Show the run until it ends: a live display on a terminal, else a block or JSON line at every change."""
    from rich.live import Live

    live = Live(console=console, auto_refresh=False)
    shown: tuple[object, ...] = ()
    with live if console.is_terminal and not as_json else contextlib.nullcontext():
        while True:
            found = _read(folder)
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
