"""Measure how ranks load a model, publish a version, write a checkpoint, and write the folder of a stage.

A model of the size of SmolLM2-135M with AdamW, on the CPU with 2 and 4 ranks over gloo. A full gather
collects every tensor on every rank, and rank 0 writes. Loading is compared with whole models on every rank,
the folder with a whole model on rank 0. Seconds are from the start to the last sync; memory is the peak of a
rank above what it holds before, the largest of all ranks. An asynchronous checkpoint blocks the trainer only
for a copy; that is compared with writing it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.rank_processes import result_of_first
from benchmarks.result import Result, Settings

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
    found: dict[str, dict[str, float]] = result_of_first(
        f"benchmarks.ranks.{program}", str(folder), "quick" if settings.quick else "", size=size
    )
    return found
