"""Measure how ranks load a model, publish a version, write a checkpoint, and write the folder of a stage.

A model of the size of SmolLM2-135M with AdamW, on the CPU with 2 and 4 ranks over gloo. A full gather
collects every tensor on every rank, and rank 0 writes. Loading is compared with whole models on every rank,
the folder with a whole model on rank 0. Seconds are from the start to the last sync; memory is the peak of a
rank above what it holds before, the largest of all ranks. An asynchronous checkpoint blocks the trainer only
for a copy; that is compared with writing it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.result import Result, Settings
from fairlead.errors import FairleadError
from fairlead.local.addresses import Ports

_FULL = "full gather, rank 0 writes"
_SYNCHRONOUS = "written before the next update"
_WHOLE = "whole models"


def run(settings: Settings) -> dict[str, Result]:
    """Measure both with each number of ranks."""
    results: dict[str, Result] = {}
    for size in (2,) if settings.quick else (2, 4):
        with tempfile.TemporaryDirectory() as folder:
            found = _measured("rank", size, Path(folder), settings)
            loaded = _measured("loading", size, Path(folder), settings)
        for what in ("load", "folder"):
            ours, whole = loaded[f"{what}_rows"], loaded[f"{what}_whole"]
            name = f"{what}_of_{size}_ranks"
            results[f"{name}_seconds"] = Result(ours["seconds"], "s", whole["seconds"], _WHOLE)
            results[f"{name}_memory"] = Result(
                ours["memory"] / 2**20, "MiB", whole["memory"] / 2**20, _WHOLE, at_most=1.0
            )
        for what in ("version", "checkpoint"):
            ours, full = found[f"{what}_shares"], found[f"{what}_full"]
            name = f"{what}_of_{size}_ranks"
            results[f"{name}_seconds"] = Result(ours["seconds"], "s", full["seconds"], _FULL, at_most=1.0)
            results[f"{name}_cpu"] = Result(ours["cpu"], "CPU-s of all ranks", full["cpu"], _FULL)
            results[f"{name}_memory"] = Result(
                ours["memory"] / 2**20, "MiB", full["memory"] / 2**20, _FULL, at_most=1.0
            )
            results[f"{name}_bytes"] = Result(ours["bytes"] / 2**20, "MiB", full["bytes"] / 2**20, _FULL)
        begun, written = found["checkpoint_begun"], found["checkpoint_shares"]
        name = f"asynchronous_checkpoint_of_{size}_ranks_blocks"
        results[f"{name}_seconds"] = Result(begun["seconds"], "s", written["seconds"], _SYNCHRONOUS)
    return results


def _measured(program: str, size: int, folder: Path, settings: Settings) -> dict[str, dict[str, float]]:
    """Start the ranks; return what rank 0 prints."""
    port = Ports().free("ranks")
    command = [
        sys.executable,
        "-m",
        f"benchmarks.ranks.{program}",
        str(folder),
        "quick" if settings.quick else "",
    ]
    processes = []
    for rank in range(size):
        place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in place.items()}
        environment["MASTER_ADDR"] = "127.0.0.1"
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                text=True,
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            )
        )
    output, _ = processes[0].communicate()
    if any(process.wait() for process in processes):
        raise FairleadError("a rank of the benchmark ended with an error")
    found: dict[str, dict[str, float]] = json.loads(output.splitlines()[-1])
    return found
