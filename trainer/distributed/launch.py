"""`python -m trainer.distributed.launch trainer.ppo --config run.toml`: starts the ranks of this node.

Each rank is a process of the stage with its place in the environment. The first rank that fails ends all of
them, and its exit code is the launcher's, so that supervisors treat the ranks as one process. Restarts are
not its business. Does not import torch.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fairlead import log
from fairlead.config import RunConfig, load, parse_overrides
from fairlead.errors import EXIT_CODE, ConfigError, FairleadError, exit_code
from fairlead.local import launch as parent_bound
from fairlead.local.addresses import LOOPBACK
from fairlead.local.process import describe_exit
from fairlead.local.ranks import rank_environment
from fairlead.planning.machine import visible_gpus
from trainer.distributed.place import LISTENER, Node, node

logger = logging.getLogger(__name__)

STAGES = {
    "trainer.sft": "sft",
    "trainer.reward_model": "reward_model",
    "trainer.preference": "preference",
    "trainer.ppo": "ppo",
}
"""Modules that can be started, and the section of the configuration of each."""

_REASON_SECONDS = 2.0
"""Time in which the other ranks can end by themselves after the first has failed, with their reasons."""
_STOP_SECONDS = 25.0
"""Time that the ranks have to end after a signal; some stages write a checkpoint. It is shorter than the time
that `local.drain_seconds` and the manifests give the launcher itself."""
_LAST_LINES_SECONDS = 5.0
"""Time to read the last lines of a rank that has ended."""
_STATED_CODES = frozenset(EXIT_CODE.values())
"""Exit codes that state a reason; a rank that has one is the cause, whichever rank ended first."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a rank."""

    rank: int
    """Its number."""
    code: int
    """Its exit code, or minus the number of the signal that killed it."""
    line: str
    """The last line that it wrote."""


class Launcher:
    """The ranks of one node, from their start to the end of the last of them."""

    def __init__(
        self,
        command: Sequence[str],
        environments: Mapping[int, Mapping[str, str]],
        *,
        listener: socket.socket | None = None,
    ) -> None:
        """
        Args:
            command: program and arguments of every rank.
            environments: environment of each rank of this node, by its number.
            listener: the socket that rank 0 gets; it is closed here.
        """
        self._command = command
        self._environments = environments
        self._listener = listener
        self._ends: queue.Queue[End | signal.Signals] = queue.Queue()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._output = threading.Lock()

    def run(self) -> int:
        """Start every rank, wait until all have ended, and return the exit code for the supervisor."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            for rank, environment in self._environments.items():
                self._start(rank, environment)
            if self._listener is not None:
                # Otherwise the port would still accept connections after the end of rank 0.
                self._listener.close()
            return self._wait()
        finally:
            self._kill()

    def _start(self, rank: int, environment: Mapping[str, str]) -> None:
        process = subprocess.Popen(
            # A rank dies with its launcher.
            [sys.executable, "-I", "-S", parent_bound.__file__, str(os.getpid()), *self._command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=() if rank or self._listener is None else (self._listener.fileno(),),
        )
        self._processes[rank] = process
        threading.Thread(target=self._follow, args=(rank, process), daemon=True).start()

    def _follow(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        """Report the end of a rank, once its last lines are written."""
        lines: list[bytes] = [b""]
        reader = threading.Thread(target=self._pass_on, args=(rank, process, lines), daemon=True)
        reader.start()
        code = process.wait()
        # A process that it started may still hold its output open.
        reader.join(_LAST_LINES_SECONDS)
        self._ends.put(End(rank, code, lines[-1].decode(errors="replace").strip()))

    def _pass_on(self, rank: int, process: subprocess.Popen[bytes], last: list[bytes]) -> None:
        """Write the lines of a rank to the output of the launcher, and keep the last of them."""
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if line.strip():
                    last[:] = [line]
                # Lines of JSON contain the rank.
                prefix = b"" if rank == 0 or line.startswith(b"{") else f"[rank {rank}] ".encode()
                with self._output:
                    sys.stderr.buffer.write(prefix + line)
                    sys.stderr.buffer.flush()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._ends.put(signal.Signals(number))

    def _wait(self) -> int:
        failed: list[End] = []
        stopped: signal.Signals | None = None
        running = len(self._processes)
        deadline: float | None = None
        while running:
            try:
                event = self._ends.get(timeout=None if deadline is None else deadline - time.monotonic())
            except (queue.Empty, ValueError):
                self._kill()
                deadline = None
                continue
            if isinstance(event, signal.Signals):
                stopped = stopped or event
                deadline = deadline or time.monotonic() + _STOP_SECONDS
                self._send(event)
                continue
            running -= 1
            if event.code:
                failed.append(event)
                if stopped is None:
                    deadline = deadline or time.monotonic() + _REASON_SECONDS
        if stopped is not None and failed:
            return 128 + stopped
        return self._result(failed)

    def _result(self, failed: Sequence[End]) -> int:
        """Return the exit code of the rank that caused the end of all; its reason becomes the last line."""
        if not failed:
            return 0
        cause = next((end for end in failed if end.code in _STATED_CODES), failed[0])
        if cause.code in _STATED_CODES and cause.line:
            reason = cause.line
        else:
            reason = f"rank {cause.rank} of the trainer: {describe_exit(cause.code)}"
            # The last line of a killed process has nothing to do with its end.
            reason += f", last line: {cause.line}" if cause.code > 0 and cause.line else ""
        sys.stderr.write(f"{reason}\n")
        return cause.code if cause.code > 0 else 128 - cause.code

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def _kill(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()


def environments(
    config: RunConfig,
    stage: str,
    place: Node,
    base: Mapping[str, str] = os.environ,
    *,
    listener: socket.socket | None = None,
) -> dict[int, dict[str, str]]:
    """Return the environment of each rank of a node, by the number of the rank.

    Args:
        config: the run.
        stage: the section that is trained.
        place: the node.
        listener: a socket at the port of rank 0, if all ranks are on this node.
        base: the environment of the launcher. Its `CUDA_VISIBLE_DEVICES` lists the GPUs to use, one for each
            rank; its `OMP_NUM_THREADS` is the number of threads of all ranks of the node together.

    Raises:
        ConfigError: if there are fewer GPUs than ranks.
    """
    host, port = (place.host, place.port) if listener is None else listener.getsockname()
    gpus = visible_gpus(base) if getattr(config, stage).device != "cpu" else ()
    if gpus and len(gpus) < place.per_node:
        raise ConfigError(
            "ranks.per_node",
            got=f"{place.per_node}, with {len(gpus)} GPUs (CUDA_VISIBLE_DEVICES={','.join(gpus)})",
            allowed=f"at most one rank for each GPU, or {stage}.device = 'cpu'",
        )
    shared = rank_environment(base, ranks=place.per_node, is_one_machine=place.nodes == 1)
    found = {}
    for local_rank in range(place.per_node):
        rank = place.index * place.per_node + local_rank
        own = {
            "RANK": str(rank),
            "WORLD_SIZE": str(place.size),
            "LOCAL_RANK": str(local_rank),
            "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
        }
        if listener is not None and rank == 0:
            own[LISTENER] = str(listener.fileno())
        if gpus:
            own["CUDA_VISIBLE_DEVICES"] = gpus[local_rank]
        found[rank] = {**base, **shared, **own}
    return found


def bound_socket() -> socket.socket:
    """Return a socket that holds a free port of this machine until rank 0 listens on it."""
    found = socket.socket()
    # Without SO_REUSEADDR: no other socket can be bound to the port.
    found.bind((LOOPBACK, 0))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Start the ranks of this node; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.distributed.launch", description=__doc__)
    parser.add_argument("module", choices=sorted(STAGES), help="the stage")
    parser.add_argument("--config", type=Path, default=None, help="the TOML file of the run")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--force", action="store_true", help="run a finished stage again")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    log.setup()
    try:
        config = load(options.config, overrides=parse_overrides(options.set))
        log.setup(style=config.observe.log_style, level=config.observe.log_level)
        place = node(config.ranks)
        command = (sys.executable, "-m", *arguments)
        if place.size == 1:
            os.execv(command[0], command)
        listener = bound_socket() if place.nodes == 1 else None
        started = environments(config, STAGES[options.module], place, listener=listener)
        logger.info("starting ranks %s of %d", ", ".join(map(str, started)), place.size)
        return Launcher(command, started, listener=listener).run()
    except FairleadError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(main())
