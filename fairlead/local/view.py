"""The view of a running stage: a live display on a terminal, log lines elsewhere.

Shows the status of the run as `fairlead status` does, in what the terminal has space for; changes nothing.
Log lines scroll above the live display.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import termios
import time
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fairlead.config import RunFolder
from fairlead.local.numbers import duration, number
from fairlead.local.run_files import StageProgress, read_progress
from fairlead.local.screen import draw, phase
from fairlead.local.status import RunStatus, StatusReader

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 0.25
_READ_SECONDS = 1.0
_ASK_SECONDS = 5.0
"""Services are asked for their health that often; their supervisor does so anyway."""
_LINE_SECONDS = 5.0
_LINES_ABOVE = 16
"""Lines that are kept for what is above the processes, and for the log."""
_LINE_FIGURES = (
    *("reward", "kl", "tokens_per_second", "response_length", "entropy", "clip_fraction"),
    *("loss", "accuracy"),
)
_NAMES = {"kl": "KL", "tokens_per_second": "tokens/s", "response_length": "length"}


class View:
    """The view of one stage of a run."""

    def __init__(self, folder: RunFolder, *, stage: str) -> None:
        """
        Args:
            folder: of the run.
            stage: sft, reward_model, preference or ppo; the files of an earlier stage are not shown.
        """
        self._folder = folder
        self._stage = stage
        self._reader = StatusReader(folder, ask_seconds=_ASK_SECONDS)
        self._begun = time.monotonic()
        self._logged = ""
        self._newest: StageProgress | None = None
        self._status: RunStatus | None = None

    async def show(self, console: Console) -> None:
        """Show the run until cancelled."""
        await (self._live(console) if console.is_terminal else self._lines())

    async def _live(self, console: Console) -> None:
        reading = asyncio.create_task(self._keep_reading(), name="status")
        try:
            with (
                Live(self.render(console), console=console, auto_refresh=False, transient=True) as live,
                _log_above(console),
            ):
                while True:
                    live.update(self.render(console), refresh=True)
                    await asyncio.sleep(_REFRESH_SECONDS)
        finally:
            reading.cancel()

    async def _keep_reading(self) -> None:
        while True:
            await self.read_status()
            await asyncio.sleep(_READ_SECONDS)

    async def read_status(self) -> None:
        """Read the status that `render` shows."""
        found = await self._reader.read()
        if found.stage == self._stage:
            self._status = found

    def render(self, console: Console) -> Text:
        """Return the view, as wide as the terminal, with as many processes as it has space for."""
        elapsed = time.monotonic() - self._begun
        if self._status is None:
            return Text(
                f"{self._folder.root} · starting · {duration(elapsed)}", no_wrap=True, overflow="ellipsis"
            )
        rows = max(2, console.height - _LINES_ABOVE)
        return draw(self._status, console.width, rows=rows, elapsed=elapsed)

    async def _lines(self) -> None:
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            await self.read_status()
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
            services = self._status.services if self._status is not None else ()
            starting = [service.name for service in services if service.state not in ("ready", "running")]
            return "starting" + (f", waiting for {', '.join(starting)}" if starting else "")
        return progress_line(now)

    def read(self) -> StageProgress | None:
        """Return the last progress that the stage reported; None before its first report."""
        found = read_progress(self._folder.progress)
        if found is not None and found.stage == self._stage:
            self._newest = found
        return self._newest


def progress_line(now: StageProgress) -> str:
    """Return the progress of a stage in one line."""
    parts = [f"{now.stage} {now.step}/{now.total}", phase(now)]
    shown = [name for name in _LINE_FIGURES if name in now.figures]
    parts += [f"{_NAMES.get(name, name.replace('_', ' '))} {number(now.figures[name])}" for name in shown[:6]]
    if now.eta_seconds is not None and now.step < now.total:
        parts.append(f"ETA {duration(now.eta_seconds)}")
    return " · ".join(parts)


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
