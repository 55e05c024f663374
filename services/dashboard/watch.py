"""Keep the page of a run up to date while somebody looks at it, and know which parts are new.

The run is read once a second for any number of visitors, and not at all without any.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

from fairlead.config import RunFolder
from fairlead.local.status import RunStatus, StatusReader
from fairlead.report.page import Page, PageSection, parts
from fairlead.report.run_record import RecordReader, RunRecord
from fairlead.report.run_report import page_of, sections_of

logger = logging.getLogger(__name__)

_READ_SECONDS = 1.0
_ASK_SECONDS = 3.0
_LOOKED_AT_SECONDS = 5.0
"""Time after a visitor in which the run is still read, so that a reloaded page is not old."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a page must change to be up to date."""

    version: str
    """The version that it then is."""
    parts: dict[str, str]
    """New content by the id of the element."""
    whole: bool
    """Whether the page has other parts now and must be loaded again."""


class RunWatch:
    """The newest page of a run, and the version of each of its parts."""

    def __init__(self, folder: RunFolder, *, stopped: Callable[[], bool] = lambda: False) -> None:
        """
        Args:
            folder: of the run.
            stopped: whether the server ends, and with it every stream.
        """
        self._folder = folder
        self._stopped = stopped
        self._status = StatusReader(folder, ask_seconds=_ASK_SECONDS)
        self._record = RecordReader(folder, all_samples=False)
        self._read: tuple[RunRecord, list[PageSection]] | None = None
        self._stamp: object = None
        self._boot = secrets.token_hex(4)
        self._number = 0
        self._page: Page | None = None
        self._parts: dict[str, tuple[int, str]] = {}
        self._shape = 0
        self._news = asyncio.Condition()
        self._reading = asyncio.Lock()
        self._read_at = -1e9
        self._seen = -1e9
        self._visitors = 0

    @property
    def version(self) -> str:
        """The version of the newest page."""
        return f"{self._boot}-{self._number}"

    async def run(self) -> None:
        """Read the run every second while somebody looks; until cancelled."""
        while True:
            if self._visitors or time.monotonic() - self._seen < _LOOKED_AT_SECONDS:
                with suppress(OSError):
                    await self._refresh()
            async with self._news:
                self._news.notify_all()
            await asyncio.sleep(_READ_SECONDS)

    async def page(self) -> Page:
        """Return the page as of now, or of a moment ago."""
        self._seen = time.monotonic()
        await self._refresh()
        assert self._page is not None
        return self._page

    async def changes(self, version: str) -> AsyncIterator[Change | None]:
        """Yield what is new since a version, again and again; None from time to time if nothing is."""
        self._visitors += 1
        try:
            while not self._stopped():
                if change := self._since(version):
                    version = change.version
                    yield change
                else:
                    yield None
                async with self._news:
                    await self._news.wait()
        finally:
            self._visitors -= 1
            self._seen = time.monotonic()

    def _since(self, version: str) -> Change | None:
        if version == self.version:
            return None
        boot, _, number = version.partition("-")
        known = int(number) if boot == self._boot and number.isdigit() else -1
        if known < self._shape:
            # A page of another server, or one with other parts.
            return Change(self.version, {}, whole=True)
        new = {name: html for name, (number, html) in self._parts.items() if number > known}
        return Change(self.version, new, whole=False)

    async def _refresh(self) -> None:
        async with self._reading:
            if time.monotonic() - self._read_at < _READ_SECONDS / 2:
                return
            status = await self._status.read()
            page = await asyncio.to_thread(self._make, status)
            self._read_at = time.monotonic()
            self._keep(page, await asyncio.to_thread(parts, page))

    def _make(self, status: RunStatus) -> Page:
        stamp = self._record.stamp()
        if self._read is None or stamp != self._stamp:
            record = self._record.read()
            self._read, self._stamp = (record, sections_of(record)), stamp
        return page_of(self._read[0], status, live=True, sections=self._read[1])

    def _keep(self, page: Page, found: dict[str, str]) -> None:
        if self._parts and self._parts.keys() != found.keys():
            self._number += 1
            self._shape = self._number
        elif any(self._parts.get(name, (0, ""))[1] != html for name, html in found.items()):
            self._number += 1
        self._page = page
        self._parts = {
            name: known
            if (known := self._parts.get(name)) is not None and known[1] == html
            else (self._number, html)
            for name, html in found.items()
        }
