"""The processes of a trainer of several ranks, found from the launcher that started them."""

from __future__ import annotations

import contextlib

import psutil


def ranks_of(launcher: int | None) -> dict[int, psutil.Process]:
    """Return the processes of the ranks that run now, by number; none without a launcher."""
    found = {}
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(launcher).children() if launcher else ():
            with contextlib.suppress(psutil.Error):
                if "trainer.ppo" in child.cmdline() and "WORLD_SIZE" in child.environ():
                    found[int(child.environ()["RANK"])] = child
    return found
