"""Runs small real processes under the supervisor of a run on one machine, for tests."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fairlead.config import RunFolder
from fairlead.config.infrastructure import LocalSection
from fairlead.local.process import ChildProcess, ProcessSpec
from fairlead.local.restart_policy import RunOutcome
from fairlead.local.run_files import running_pids
from fairlead.local.supervisor import Supervisor

FOREVER = "import signal; signal.pause()"


def child(name: str, program: str, *arguments: object, **fields: object) -> ProcessSpec:
    command = (sys.executable, "-c", textwrap.dedent(program), *map(str, arguments))
    return ProcessSpec(name=name, command=command, **fields)  # type: ignore[arg-type]


def supervisor(folder: RunFolder, *specs: ProcessSpec, **settings: object) -> Supervisor:
    finished = settings.pop("finished", lambda: True)
    observed = settings.pop("observed", None)
    standby, environment = settings.pop("standby", None), settings.pop("environment", dict(os.environ))
    local = LocalSection(**({"backoff_seconds": 0.05, "drain_seconds": 5.0} | settings))  # type: ignore[arg-type]
    return Supervisor(
        specs,
        local=local,
        folder=folder,
        environment=environment,  # type: ignore[arg-type]
        finished=finished,  # type: ignore[arg-type]
        standby=standby,  # type: ignore[arg-type]
        observed=observed,  # type: ignore[arg-type]
    )


def process(of: Supervisor, name: str) -> ChildProcess:
    return next(process for process in of.processes if process.name == name)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def run_while(of: Supervisor, during: Callable[[], Awaitable[None]]) -> RunOutcome:
    """Run the supervisor until an action, started at the same time, ends and stops it."""
    running = asyncio.create_task(of.run())
    try:
        await during()
        return await asyncio.wait_for(running, 60)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@contextmanager
def run_folder(root: Path) -> Iterator[RunFolder]:
    """Yield a run's folder; check at the end that none of its processes is running."""
    made = RunFolder(root)
    made.root.mkdir()
    yield made
    left = list(running_pids(made.processes, mark=str(made.root)).values())
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
