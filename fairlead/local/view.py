"""The view of a running stage: a live display on a terminal, log lines elsewhere.

Reads `progress.json` and the state of the supervisor's processes; changes nothing. Log lines scroll above the
live display.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fairlead.local.process import ChildProcess, State
from fairlead.local.run_files import StageProgress, read_progress

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 0.25
_LINE_SECONDS = 5.0
_STYLES = {
    State.WAITING: "dim",
    State.STARTING: "yellow",
    State.READY: "green",
    State.BACKOFF: "red",
    State.STOPPING: "yellow",
    State.ENDED: "dim",
}
# The figures that are shown first; others follow in the stage's order where there is space.
_FIRST_FIGURES = (
    *("reward", "kl", "tokens_per_second", "response_length", "entropy", "clip_fraction", "eos_rate"),
    *("loss", "accuracy"),
)
_NAMES = {"kl": "KL", "tokens_per_second": "tokens/s", "response_length": "length"}
_FIRST_RESULTS = (
    *("heldout_loss", "accuracy", "ece", "updates", "episodes", "proxy_first", "proxy_last", "kl"),
    *("tasks_lost", "tasks_duplicated", "dead_letters", "seconds"),
)
_HIDDEN = ("seconds", "queue_", "update", "tokens", "steps")


class View:
    """The view of one run: title, progress, figures, and a row per process."""

    def __init__(self, title: str, *, stage: str, path: Path, processes: Sequence[ChildProcess]) -> None:
        self._title = title
        self._stage = stage
        self._path = path
        self._processes = processes
        self._begun = time.monotonic()
        self._logged = ""
        self._newest: StageProgress | None = None

    async def show(self, console: Console) -> None:
        """Show the run until cancelled."""
        await (self._live(console) if console.is_terminal else self._lines())

    async def _live(self, console: Console) -> None:
        with (
            Live(self.render(console.width), console=console, auto_refresh=False, transient=True) as live,
            _log_above(console),
        ):
            while True:
                live.update(self.render(console.width), refresh=True)
                await asyncio.sleep(_REFRESH_SECONDS)

    async def _lines(self) -> None:
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            self.log_line()

    def log_line(self) -> None:
        """Log the progress of the run in one line, unless that line was the last one logged."""
        line = self.line()
        if line != self._logged:
            logger.info("%s", line)
        self._logged = line

    def line(self) -> str:
        """Return the progress of the run in one line."""
        now = self.read()
        if now is None:
            starting = [process.name for process in self._processes if process.state is not State.READY]
            return "starting" + (f", waiting for {', '.join(starting)}" if starting else "")
        return progress_line(now)

    def render(self, width: int) -> RenderableType:
        """Return the view, at most `width` columns wide."""
        now = self.read()
        parts: list[RenderableType] = [self._headline(now, width)]
        if now is not None:
            bar = Table.grid()
            bar.add_row(ProgressBar(total=max(1, now.total), completed=now.step, width=min(width, 100)))
            parts += [bar]
            parts += [_figures_line(now, width)]
        parts += [self._rows(width)]
        return Group(*parts)

    def read(self) -> StageProgress | None:
        """Return the last progress that the stage reported; None before its first report."""
        found = read_progress(self._path)
        if found is not None and found.stage == self._stage:
            self._newest = found
        return self._newest

    def _headline(self, now: StageProgress | None, width: int) -> Text:
        unit = "update" if self._stage == "ppo" else "step"
        parts = ["starting" if now is None else f"{unit} {now.step} of {now.total}"]
        parts.append(duration(time.monotonic() - self._begun))
        if now is not None and now.eta_seconds is not None and now.step < now.total:
            parts.append(f"ETA {duration(now.eta_seconds)}")
        return headline(self._title, parts, width)

    def _rows(self, width: int) -> Table:
        now = time.monotonic()
        columns: list[tuple[str, list[Text]]] = [
            ("process", [Text(process.name) for process in self._processes]),
            ("state", [Text(_state(process), _STYLES[process.state]) for process in self._processes]),
            ("restarts", [_restarts(process) for process in self._processes]),
            ("pid", [Text(str(process.pid or "–")) for process in self._processes]),
            ("up", [Text(_up(process, now)) for process in self._processes]),
            ("log", [Text(_short(process.log), "dim") for process in self._processes]),
        ]
        return columns_that_fit(columns, width)


def progress_line(now: StageProgress) -> str:
    """Return the progress of a stage in one line."""
    parts = [f"{now.stage} {now.step}/{now.total}", phase(now)]
    parts += [f"{name} {value}" for name, value in list(figures(now).values())[:6]]
    if now.eta_seconds is not None and now.step < now.total:
        parts.append(f"ETA {duration(now.eta_seconds)}")
    return " · ".join(parts)


def figures(now: StageProgress) -> dict[str, tuple[str, str]]:
    """Return, by key, the label and the formatted value of each figure, the most important first."""
    order = [name for name in _FIRST_FIGURES if name in now.figures]
    order += [name for name in now.figures if name not in order and not name.startswith(_HIDDEN)]
    return {name: (_NAMES.get(name, name.replace("_", " ")), number(now.figures[name])) for name in order}


def headline(title: str, parts: Sequence[str | Text], width: int) -> Text:
    """Return title and parts in one line; parent folders are left out of the title if it does not fit."""
    line = Text(" · ").join([Text(title, style="bold"), *(Text() + part for part in parts)])
    line.no_wrap = True
    line.overflow = "ellipsis"
    if line.cell_len > width and "/" in title:
        return headline(title.rpartition("/")[2], parts, width)
    line.truncate(width, overflow="ellipsis")
    return line


def columns_that_fit(columns: Sequence[tuple[str, Sequence[Text]]], width: int) -> Table:
    """Return a table of the first columns that fit into the width without wrapping.

    Args:
        columns: names and cells, the most important first.
        width: in characters.
    """
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    shown = []
    left = width
    for name, cells in columns:
        # The state changes while it is shown; the width of its column must not.
        widest = max(len(name), *(len(cell) for cell in cells), 10 if name == "state" else 0)
        if widest > left:
            break
        left -= widest + 2
        numeric = name in ("restarts", "pid", "up")
        rows.add_column(name, justify="right" if numeric else "left", min_width=widest, no_wrap=True)
        shown.append(cells)
    for row in zip(*shown, strict=True):
        rows.add_row(*row)
    return rows


def result_figures(result: Mapping[str, object]) -> str:
    """Return the most important figures of a stage's result in one line."""
    return ", ".join(
        f"{name.replace('_', ' ')} {number(float(value))}"
        for name in _FIRST_RESULTS
        if isinstance(value := result.get(name), int | float)
    )


def number(value: float) -> str:
    """Return a figure in a few characters: 1,234 · 12.3 · 0.0123 · 1.2e-06."""
    size = abs(value)
    if size >= 1_000:
        return f"{value:,.0f}"
    if size >= 0.001 or size == 0:
        return f"{value:.3g}"
    return f"{value:.1e}"


def duration(seconds: float) -> str:
    """Return seconds as 0:07, 12:30 or 3:05:00."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def phase(now: StageProgress) -> str:
    """Return the current phase of a stage, and what it does or waits for."""
    text = f"{now.phase}: {now.doing}" if now.doing else now.phase
    if now.waiting_for:
        text += f" for {now.waiting_for}" if now.phase == "wait" else f", waiting for {now.waiting_for}"
    return text


def _figures_line(now: StageProgress, width: int) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(phase(now), style="cyan")
    if now.since and now.phase != "done":
        line.append(f" {max(0.0, time.time() - now.since):.0f} s", style="dim")
    line.truncate(width, overflow="ellipsis")
    second = Text(no_wrap=True)
    for name, value in figures(now).values():
        piece = f"{name} {value}"
        if second.cell_len + len(piece) + 3 > width:
            break
        second.append("   " if second.cell_len else "")
        second.append(f"{name} ", style="dim").append(value, style="bold")
    return Text("\n").join([line, second]) if second.cell_len else line


def _state(process: ChildProcess) -> str:
    # Without a probe it is not known whether the process is ready.
    if process.state is State.READY and process.spec.probe is None:
        return "running"
    return process.state.value


def _restarts(process: ChildProcess) -> Text:
    return Text(str(process.restarts), "red" if process.restarts else "dim")


def _up(process: ChildProcess, now: float) -> str:
    return duration(now - process.started_at) if process.pid else "–"


def _short(path: Path) -> str:
    """Return the path relative to the current directory, if it is inside."""
    with contextlib.suppress(ValueError):
        return str(path.absolute().relative_to(Path.cwd()))
    return str(path)


def leave_closed_terminal() -> None:
    """Send standard output and error to the null device if their terminal has been closed.

    Every further line would fail, and with it what is done after the line.
    """
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


class _ConsoleHandler(logging.Handler):
    """Prints log lines above the live display."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line, coloured by its level."""
        style = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}.get(record.levelname, "")
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        try:
            self._console.print(Text.assemble((f"{clock} ", "dim"), (record.getMessage(), style)))
        except OSError:
            self.handleError(record)  # the terminal has been closed


@contextlib.contextmanager
def _log_above(console: Console) -> Iterator[None]:
    handler = _ConsoleHandler(console)
    root = logging.getLogger()
    # Plain lines on standard error would damage the display.
    quiet = [other for other in root.handlers if type(other) is logging.StreamHandler]
    for other in quiet:
        root.removeHandler(other)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        for other in quiet:
            root.addHandler(other)
