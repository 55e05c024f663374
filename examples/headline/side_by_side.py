"""Several seeds at a time, each in a process of its own: most stages leave a core idle.

A process of a seed sends what it shows through a pipe, whose end says that it has ended. It is in a process
group of its own, so Ctrl-C reaches only the command, which stops all of them; they end with the command too.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType

from rich.console import Console

from examples.headline.seed import OnStep, Seed, Show
from fairlead import log
from fairlead.errors import FairleadError, ProcessFailed
from fairlead.local.launch import end_with_parent
from fairlead.rounds.training import StageStopped

_TERMINATED = 128 + signal.SIGTERM
_SPAWN = multiprocessing.get_context("spawn")

Running = dict[Connection, tuple[Seed, SpawnProcess]]


def run(seeds: Sequence[Seed], jobs: int, show: Show, on_step: OnStep) -> None:
    """Run every step of the seeds that is not done; seeds that use the models of others come after those.

    Args:
        seeds: all seeds.
        jobs: how many run at a time.
        show: shows a line of progress.
        on_step: called after each step of a seed with its name and its seconds, None if it was done before.

    Raises:
        FairleadError: a step failed or SIGTERM came; the other seeds have been stopped, finished steps are
            kept.
    """
    running: Running = {}
    try:
        with _sigterm_raises():
            for wave in (
                [one for one in seeds if one.larger_of is None],
                [one for one in seeds if one.larger_of is not None],
            ):
                waiting = deque(wave)
                while waiting or running:
                    while waiting and len(running) < jobs:
                        _start(waiting.popleft(), running)
                    for pipe in wait(list(running)):
                        assert isinstance(pipe, Connection)
                        _receive(pipe, running, show, on_step)
    finally:
        for _, process in running.values():
            process.terminate()
        for pipe, (_, process) in running.items():
            process.join()
            pipe.close()


def _start(one: Seed, running: Running) -> None:
    ours, theirs = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_run_seed, args=(one, theirs, os.getpid()), name=f"seed {one.seed}")
    process.start()
    theirs.close()  # else the pipe would not end with the process
    running[ours] = one, process


def _receive(pipe: Connection, running: Running, show: Show, on_step: OnStep) -> None:
    one, process = running[pipe]
    try:
        message = pipe.recv()
    except EOFError:
        del running[pipe]
        pipe.close()
        process.join()
        if process.exitcode:
            text = f"seed {one.seed}: its process ended with {process.exitcode}; the same command continues"
            raise ProcessFailed(text) from None
        return
    match message:
        case ("line", line):
            show(f"seed {one.seed} {line.strip()}")
        case ("step", name, seconds):
            on_step(name, seconds)
        case ("stopped", text, code):
            raise StageStopped(text, code)
        case (_, text):
            raise ProcessFailed(f"seed {one.seed}: {text}")


def _run_seed(one: Seed, pipe: Connection, parent: int) -> None:
    """Run a seed in this process, which has been spawned for it."""
    os.setpgid(0, 0)
    end_with_parent(parent, signal.SIGTERM)
    log.setup(style="human", level="WARNING")
    try:
        one.run(
            lambda line: pipe.send(("line", line)),
            lambda name, seconds: pipe.send(("step", name, seconds)),
            Console(quiet=True),
        )
    except StageStopped as error:
        pipe.send(("stopped", str(error), error.code))
    except FairleadError as error:
        pipe.send(("failed", str(error)))
    finally:
        pipe.close()


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise StageStopped("stopped by SIGTERM; the same command continues", _TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
