"""Triton as a baseline of scoring: a real server, pinned to given cores, in several configurations.

`python -m benchmarks triton` measures only these; benchmarks/scoring.py compares them with ours in one run.
Every variant serves what `fairlead export-triton` writes, so all of them run the same forward pass.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from grpc import aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from benchmarks import lengths, tiny_models
from benchmarks.result import Result, Settings, Spent, rates
from benchmarks.triton_server import NoTriton, TritonServer
from fairlead.errors import FairleadError
from services.reward.triton import export as triton_export

Rows = Sequence[Sequence[int]]
"""Ids of the sequences of one request."""
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "triton_ragged": {"ragged": True, "packing": "arrival"},
    "triton_equal_shapes": {"ragged": False, "packing": "arrival"},
    "triton_ragged_each": {"ragged": True, "packing": "each"},
    "triton_ragged_sorted": {"ragged": True, "packing": "sorted"},
}
"""Models of the repository: merged regardless of length and padded in order of arrival; merged only for equal
shapes, as without ragged batching; merged, but run row by row; merged and sorted, the default of
`fairlead export-triton`."""
CLIENTS = 64
_TURNS = 2
LONGEST = 1_024


@dataclass(frozen=True, slots=True)
class Load:
    """Results of a number of clients."""

    seconds: float
    """Wall-clock seconds from the first request to the last answer."""
    latencies_seconds: tuple[float, ...]
    """Of every request, in order."""
    scores: tuple[tuple[float, ...], ...]
    """Of every request, in order."""

    @property
    def sequences_per_second(self) -> float:
        """Sequences per second."""
        return sum(map(len, self.scores)) / self.seconds

    def latency_seconds(self, share: float) -> float:
        """Return a quantile of the latencies, such as 0.99."""
        return float(np.quantile(self.latencies_seconds, share))


@contextmanager
def served(model: Path, *, cores: Sequence[int] = (), threads: int = 1) -> Iterator[TritonServer]:
    """Run a Triton with a model for each of VARIANTS.

    Args:
        model: folder of a reward model.
        cores: cores for the server and its models; all if empty.
        threads: torch threads of each model.

    Raises:
        FairleadError: if Triton is not available; says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        for name, settings in VARIANTS.items():
            triton_export.export(
                triton_export.TritonExport(
                    model=str(model), target=repository, name=name, link=True, **settings
                )
            )
        try:
            with TritonServer(repository, Path(folder) / "log", cores=cores, threads=threads) as server:
                yield server
        except NoTriton as error:
            raise FairleadError(f"no Triton here: {error}") from error


def message(model: str, rows: Rows) -> Any:  # noqa: ANN401 - generated without types
    """Return a request: ids padded to its longest row, and their lengths."""
    counts = np.array([len(row) for row in rows], dtype=np.int64).reshape(-1, 1)
    tokens = np.zeros((len(rows), int(counts.max())), dtype=np.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    request = pb.ModelInferRequest(model_name=model)
    for name, array in (("tokens", tokens), ("sequence_lengths", counts)):
        request.inputs.add(name=name, datatype="INT64", shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


async def load(address: str, model: str, requests: Sequence[Rows], *, clients: int) -> Load:
    """Send all requests with `clients` closed-loop clients.

    Works for every server of the Open Inference Protocol; requests are built before timing starts.
    """
    messages = [message(model, rows) for rows in requests]
    latencies = [0.0] * len(messages)
    scores: list[tuple[float, ...]] = [()] * len(messages)
    async with aio.insecure_channel(address) as channel:
        infer = pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        waiting = iter(range(len(messages)))

        async def client() -> None:
            for index in waiting:
                start = time.perf_counter()
                answer = await infer(messages[index])
                latencies[index] = time.perf_counter() - start
                place = [output.name for output in answer.outputs].index("rewards")
                found = np.frombuffer(answer.raw_output_contents[place], dtype="<f4")
                scores[index] = tuple(map(float, found))

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        seconds = time.perf_counter() - began
    return Load(seconds, tuple(latencies), tuple(scores))


def mixed(count: int, *, vocabulary: int, longest: int = LONGEST) -> list[Rows]:
    """Return one sequence per request, with the lengths of AlpacaEval's prompts and responses."""
    rng = random.Random(0)
    groups = lengths.groups(max(1, count // 8), longest=longest)
    sizes = [group[0] + response for group in groups for response in group[1:]][:count]
    rng.shuffle(sizes)
    return [[tuple(rng.randrange(3, vocabulary) for _ in range(size))] for size in sizes]


def run(settings: Settings) -> dict[str, Result]:
    """Measure sequences per second of every variant, by wall-clock and the server's CPU time, in turns.

    64 clients, mixed lengths.
    """
    vocabulary = 4_096
    count = 16 if settings.quick else 128
    shape = tiny_models.config(
        width=64 if settings.quick else 256,
        layers=1 if settings.quick else 4,
        vocabulary=vocabulary,
        positions=LONGEST,
    )
    requests = mixed(count, vocabulary=vocabulary)
    cores = sorted(os.sched_getaffinity(0))
    found: dict[str, list[Load]] = {name: [] for name in VARIANTS}
    cpu: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_models.save(Path(folder), shape, reward=True)
        with served(model, cores=cores[:1]) as server:
            os.sched_setaffinity(0, cores[1:] or cores)
            try:
                for _ in range(1 + settings.rounds(_TURNS)):
                    for name, loads in found.items():
                        before = server.cpu_seconds()
                        loads.append(asyncio.run(load(server.address, name, requests, clients=CLIENTS)))
                        cpu[name].append(server.cpu_seconds() - before)
            finally:
                os.sched_setaffinity(0, cores)
    _check_equal(found)
    # The first turn warms up.
    spent = {
        name: Spent(statistics.median(one.seconds for one in loads[1:]), statistics.median(cpu[name][1:]))
        for name, loads in found.items()
    }
    results: dict[str, Result] = {}
    for name, one in spent.items():
        what = "Triton without ragged batching"
        results |= rates(name, len(requests), "sequences", one, spent["triton_equal_shapes"], what)
    return results


def _check_equal(found: Mapping[str, Sequence[Load]]) -> None:
    expected = next(iter(found.values()))[0].scores
    for name, loads in found.items():
        for one in loads:
            gap = max(
                abs(a - b)
                for x, y in zip(one.scores, expected, strict=True)
                for a, b in zip(x, y, strict=True)
            )
            if gap > 1e-3:
                raise AssertionError(f"{name} differs from the others by {gap:g}: nothing to compare")
