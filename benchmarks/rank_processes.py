"""Start the ranks of a benchmark on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from fairlead.errors import FairleadError
from fairlead.local.addresses import Ports


def result_of_first(module: str, *arguments: str, size: int) -> Any:  # noqa: ANN401 - what the module prints
    """Run a module as several ranks; return the JSON in the last line that rank 0 prints.

    Raises:
        FairleadError: if a rank fails.
    """
    port = Ports().free("ranks")
    processes = []
    for rank in range(size):
        place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in place.items()}
        environment["MASTER_ADDR"] = "127.0.0.1"
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=environment,
                text=True,
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            )
        )
    output, _ = processes[0].communicate()
    if any(process.wait() for process in processes):
        raise FairleadError("a rank of the benchmark ended with an error")
    return json.loads(output.splitlines()[-1])
