"""Compare the peak memory of the reward service under load with what `fairlead plan` says: `scoring_memory`.

64 clients send single sequences of real lengths and answers to shared prompts, more than the cache of
beginnings can hold. Resident memory is sampled every few milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from pathlib import Path

from benchmarks import tiny_models
from benchmarks.result import Result, Settings
from benchmarks.serving import clients, servers, workload
from fairlead.config import load
from fairlead.planning.plan import plan_run

WIDTH, LAYERS, VOCABULARY, CLIENTS = 384, 6, 4_096, 64
SEQUENCES = 256
_AT_MOST = 1.3
"""Peak as a multiple of the plan: Python, weights, the cache and one batch."""
_SAMPLE_SECONDS = 0.005
_MEBIBYTE = 2**20


def run(settings: Settings) -> dict[str, Result]:
    """Return the peak, and the growth in the second half of the load."""
    shape = tiny_models.config(
        width=64 if settings.quick else WIDTH,
        layers=1 if settings.quick else LAYERS,
        vocabulary=VOCABULARY,
        positions=workload.LONGEST,
    )
    turns = 1 if settings.quick else 6
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_models.save(Path(folder) / "model", shape, reward=True)
        planned = _planned_bytes(model, Path(folder))
        log = Path(folder) / "log"
        with (
            servers.reward_service(model, core=cores[:1], log=log) as (address, pid, _),
            servers.pinned(cores[1:]),
        ):
            peaks = _peaks(address, pid, turns=turns)
    half = peaks[(len(peaks) - 1) // 2]
    return {
        "scoring_memory": Result(
            peaks[-1] / _MEBIBYTE, "MiB", planned / _MEBIBYTE, "planned", at_most=_AT_MOST
        ),
        "scoring_memory_growth": Result(peaks[-1] / _MEBIBYTE, "MiB", half / _MEBIBYTE, "in the first half"),
    }


def _planned_bytes(model: Path, folder: Path) -> int:
    config = load(
        overrides={
            "runs": str(folder),
            "policy.path": str(model),
            "reward.path": str(model),
            "reward.device": "cpu",
            "sampling.max_new_tokens": workload.LONGEST // 2,
        }
    )
    stage = plan_run(config).stage("ppo")
    reward = next(process for process in stage.processes if process.name == "reward")
    return reward.model_bytes + reward.runtime


def _peaks(address: str, pid: int, *, turns: int) -> list[int]:
    """Send the load; return the peak of the resident memory after each turn, in bytes."""
    peak, peaks, ended = 0, [], threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.is_set():
            peak = max(peak, servers.resident_bytes(pid))
            time.sleep(_SAMPLE_SECONDS)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        for seed in range(turns):
            for requests in (
                workload.mixed(SEQUENCES, seed=seed, vocabulary=VOCABULARY),
                workload.shared(SEQUENCES // workload.ANSWERS, seed=seed, vocabulary=VOCABULARY),
            ):
                asyncio.run(clients.run(clients.Grpc(), address, requests, clients=CLIENTS))
            peaks.append(peak)
    finally:
        ended.set()
        thread.join()
    return peaks
