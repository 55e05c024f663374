"""Starts a few ranks as processes on this machine, each of which calls one function of the tests.

`python -m tests.ranks MODULE:FUNCTION SETTINGS ARGUMENTS` is one rank: it joins, calls the function with its
group and the arguments, and prints what it returns as the last line, in JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping

from fairlead.local.addresses import Ports


class Ranks:
    """Running ranks."""

    def __init__(
        self, size: int, target: str, *arguments: object, settings: Mapping[str, object] | None = None
    ) -> None:
        """Start `size` ranks that call `target` with JSON arguments; `settings` are those of `[ranks]`."""
        self._command = [
            *(sys.executable, "-m", "tests.ranks", target),
            json.dumps(settings or {}),
            json.dumps(arguments),
        ]
        self._port = Ports().free("ranks")
        self._size = size
        self.processes = [self.start(rank) for rank in range(size)]

    def start(self, rank: int) -> subprocess.Popen[str]:
        """Start the process of one rank."""
        place = {
            "RANK": str(rank),
            "WORLD_SIZE": str(self._size),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._port),
        }
        return subprocess.Popen(
            self._command,
            env=os.environ | place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self, *, seconds: float = 100.0) -> list[tuple[int, str, str]]:
        """Return exit code, output and errors of every rank; ranks that still run are killed in the end."""
        try:
            found = []
            for process in self.processes:
                output, errors = process.communicate(timeout=seconds)
                found.append((process.returncode, output, errors))
            return found
        finally:
            self.kill()

    def results(self, *, seconds: float = 100.0) -> list[object]:
        """Return what the function returned on every rank."""
        found = self.wait(seconds=seconds)
        for code, _, errors in found:
            assert code == 0, errors
        return [json.loads(output.splitlines()[-1]) for _, output, _ in found]

    def kill(self) -> None:
        """Kill every rank that still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def main(target: str, settings: str, arguments: str) -> int:
    """Run one rank; return its exit code."""
    from fairlead.config.infrastructure import RanksSection
    from fairlead.errors import FairleadError, exit_code
    from trainer.distributed.group import join
    from trainer.distributed.place import place

    section = RanksSection(**json.loads(settings))
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    try:
        with join(place(section), section, device="cpu") as group:
            result = function(group, *json.loads(arguments))
    except FairleadError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return exit_code(error)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
