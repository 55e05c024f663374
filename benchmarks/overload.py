"""Send the reward service five times its capacity for a minute.

Accepted requests must be answered in time, others refused with a retry delay; memory must not grow, and two
seconds later latency must be normal. The server is a process on one core. The clients, on another core, send
at random times independent of earlier answers, as separate users do, and do not retry. A request is a prompt
of AlpacaEval with its eight answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from grpc import aio

from benchmarks import lengths, tiny_models
from benchmarks.result import Result, Settings
from benchmarks.serving import clients, servers, workload
from benchmarks.serving.workload import Request
from fairlead.rpc.status import RETRY_PUSHBACK
from fairlead.v1 import reward_service_pb2 as pb
from fairlead.v1 import reward_service_pb2_grpc as pb_grpc

VOCABULARY = 4_096
OVERLOAD, NORMAL = 5.0, 0.8
SECONDS = {"peak": 10.0, "normal": 20.0, "overload": 60.0, "after": 10.0}
GOODPUT_AT_LEAST, P99_AT_MOST, MEMORY_AT_MOST, RECOVERY_SECONDS = 0.9, 3.0, 1.1, 2.0
QUEUE_SECONDS = 0.5
"""`reward.batching.max_queue_seconds` of the server."""
BATCH_TOKENS = 2_048
"""`reward.batching.max_batch_tokens` of the server."""


@dataclass(slots=True)
class Phase:
    """The outcome of the requests of a phase."""

    seconds: float
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """(time sent since the start of the phase, latency) of each answered request, in seconds."""
    refused_with_delay: int = 0
    refused_without: int = 0
    failed: list[str] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Answered requests per second."""
        return len(self.latencies) / self.seconds

    def p99(self, *, since: float = 0.0) -> float:
        """Return a quantile of the latencies of requests sent after a time, in seconds."""
        return float(np.quantile([taken for sent, taken in self.latencies if sent >= since], 0.99))


def run(settings: Settings) -> dict[str, Result]:
    """Measure goodput, latency, memory, refusals and recovery."""
    shape = tiny_models.config(
        width=64 if settings.quick else 256,
        layers=1 if settings.quick else 4,
        vocabulary=VOCABULARY,
        positions=workload.LONGEST,
    )
    share = 0.05 if settings.quick else 1.0
    seconds = {name: max(1.0, share * whole) for name, whole in SECONDS.items()}
    cores = sorted(os.sched_getaffinity(0))
    limits = {
        "reward.batching.max_queue_seconds": QUEUE_SECONDS,
        "reward.batching.max_batch_tokens": BATCH_TOKENS,
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = tiny_models.save(Path(folder) / "model", shape, reward=True)
        log = Path(folder) / "log"
        address, pid, _ = stack.enter_context(
            servers.reward_service(model, core=cores[:1], log=log, settings=limits)
        )
        with servers.pinned(cores[1:]):
            phases = asyncio.run(_phases(address, pid, seconds))
    return _results(phases)


async def _phases(address: str, pid: int, seconds: dict[str, float]) -> dict[str, Phase]:
    requests = _requests()
    warm = await clients.run(clients.Grpc(), address, requests[:16], clients=16)
    count = max(32, round(seconds["peak"] * len(warm.scores) / warm.seconds))
    many = [requests[index % len(requests)] for index in range(count)]
    # Enough clients to keep it busy, and too few to be refused.
    peak = await clients.run(clients.Grpc(), address, many, clients=4)
    rate = count / peak.seconds
    found = {"peak": Phase(peak.seconds, [(0.0, taken) for taken in peak.latencies_seconds])}
    for name, times in (("normal", NORMAL), ("overload", OVERLOAD), ("after", NORMAL)):
        found[name] = await _open_loop(address, pid, requests, rate=times * rate, seconds=seconds[name])
    return found


def _requests() -> list[Request]:
    rng = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCABULARY) for _ in range(count))

    found: list[Request] = []
    for prompt_tokens, *answers in lengths.groups(200, longest=workload.LONGEST):
        prompt = ids(prompt_tokens)
        found.append([(prompt, ids(length)) for length in answers])
    return found


async def _open_loop(
    address: str, pid: int, requests: Sequence[Request], *, rate: float, seconds: float
) -> Phase:
    """Send `rate` requests per second at random times, independent of their outcome."""
    phase, rng = Phase(seconds), random.Random(1)
    bodies = [clients.Grpc().body(request) for request in requests]
    tasks: set[asyncio.Task[None]] = set()
    async with aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        score = pb_grpc.RewardServiceStub(channel).Score
        began = time.perf_counter()
        sent = 0.0
        while (sent := sent + rng.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, began + sent - time.perf_counter()))
            task = asyncio.create_task(_one(score, rng.choice(bodies), phase, began))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if len(phase.memory_bytes) <= time.perf_counter() - began:
                phase.memory_bytes.append(servers.resident_bytes(pid))
        await asyncio.gather(*tasks)
    return phase


async def _one(
    score: aio.UnaryUnaryMultiCallable[pb.ScoreRequest, pb.ScoreResponse],
    body: pb.ScoreRequest,
    phase: Phase,
    began: float,
) -> None:
    start = time.perf_counter()
    try:
        await score(body, timeout=60)
    except aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            phase.failed.append(f"{error.code().name}: {error.details()}")
        elif any(key == RETRY_PUSHBACK for key, _ in error.trailing_metadata() or ()):
            phase.refused_with_delay += 1
        else:
            phase.refused_without += 1
        return
    phase.latencies.append((start - began, time.perf_counter() - start))


def _results(phases: dict[str, Phase]) -> dict[str, Result]:
    peak, normal, overload, after = (phases[name] for name in ("peak", "normal", "overload", "after"))
    failed = [one for phase in phases.values() for one in phase.failed]
    if failed or overload.refused_without:
        raise AssertionError(f"{overload.refused_without} refused without a delay; failed: {failed[:3]}")
    refused = overload.refused_with_delay
    # From the tenth sample: the first seconds of an overload allocate memory that stays in use.
    memory = overload.memory_bytes
    early = statistics.median(memory[len(memory) // 10 : len(memory) // 4 + 1])
    late = statistics.median(memory[-max(1, len(memory) // 10) :])
    return {
        "overload_goodput": Result(
            overload.goodput, "requests/s", peak.goodput, "peak", at_least=GOODPUT_AT_LEAST
        ),
        "overload_p99": Result(overload.p99(), "s", normal.p99(), "p99 at 80% load", at_most=P99_AT_MOST),
        "overload_memory": Result(
            late / 2**20, "MiB", early / 2**20, "in the first quarter", at_most=MEMORY_AT_MOST
        ),
        "overload_refused_with_delay": Result(
            refused, "requests", max(1, refused + overload.refused_without), "all refused", at_least=1.0
        ),
        "overload_recovery": Result(
            after.p99(since=RECOVERY_SECONDS if after.seconds > 2 * RECOVERY_SECONDS else 0.0),
            "s",
            normal.p99(),
            f"p99 at 80% load before; from {RECOVERY_SECONDS:g} s after it",
            at_most=1.5,
        ),
    }
