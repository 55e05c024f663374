"""Compare scoring servers: ours, one in OpenRLHF's style, a transformers pipeline, Triton, and the offline
optimum.

Every server is a process on one core with one thread; the clients run on another core. All serve one model
and take turns. The optimum knows all requests in advance. `scoring_path.py` compares the service's path in
this process with transformers.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks import scoring_path, tiny_models
from benchmarks.result import Result, Settings
from benchmarks.serving import clients, servers, workload
from benchmarks.serving.clients import Dialect, Load
from fairlead.errors import FairleadError

WIDTH, LAYERS = 384, 6
CLIENTS = 64
FEW = (1, 8)
SEQUENCES = 256
"""Approximate number per turn with 64 clients; an eighth with fewer clients."""
TOLERANCE = 1e-3
OPTIMUM_AT_LEAST, RAGGED_AT_LEAST = 0.93, 1.2
OPENRLHF_AT_LEAST, SHARING_AT_LEAST = 2.5, 1.7
OVERHEAD_SECONDS, OVERHEAD_SHARE = 0.003, 0.1

_OPENRLHF = clients.Http("/get_reward", clients.queries, "rewards")


@dataclass(slots=True)
class Contestant:
    """A server and the dialect of its requests."""

    address: str
    dialect: Dialect
    processes: Sequence[int]
    """Process ids of the server."""
    loads: Sequence[str] = ("mixed", "shared")
    few: bool = True
    """Whether it is also measured with few clients."""
    found: dict[tuple[str, int], list[Load]] = field(default_factory=dict)
    """Turns by load and clients."""

    def rate(self, load: str, count: int = CLIENTS, *, cpu: bool = False) -> float:
        """Return sequences per second, or per CPU second; median of the turns."""
        return statistics.median(
            turn.sequences_per_cpu_second if cpu else turn.sequences_per_second
            for turn in self.found[load, count]
        )

    def quantile(self, load: str, count: int, share: float) -> float:
        """Return a quantile of the latencies in seconds; median of the turns."""
        return statistics.median(turn.quantile(share) for turn in self.found[load, count])


class Offline:
    """The core without a server; see serving/offline.py."""

    def __init__(self, model: Path, core: Sequence[int], vocabulary: int) -> None:
        self._vocabulary = vocabulary
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
        with servers.pinned(core):
            self._child = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.serving.offline", str(model)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
        self._said(self._child.stdout)
        self.turns: list[dict[str, Any]] = []

    def ask(self, load: str, count: int, seed: int, *, separate: int = 0) -> None:
        """Run one turn."""
        asked = {
            "kind": load,
            "count": count,
            "seed": seed,
            "vocabulary": self._vocabulary,
            "separate": separate,
        }
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(asked) + "\n")
        self._child.stdin.flush()
        self.turns.append(self._said(self._child.stdout))

    def close(self) -> None:
        """Stop it."""
        self._child.communicate()

    def _said(self, output: IO[str] | None) -> dict[str, Any]:
        assert output is not None
        line = output.readline()
        if not line:
            raise FairleadError("benchmarks.serving.offline ended")
        said: dict[str, Any] = json.loads(line)
        return said


def run(settings: Settings) -> dict[str, Result]:
    """Measure ratios of throughput at 64 clients, and a single client's latency beyond the forward pass."""
    path = scoring_path.run(settings)
    if settings.device.type != "cpu":
        # On a GPU, pinned cores and Triton's CPU build are not comparable.
        return path
    vocabulary = 4_096
    shape = tiny_models.config(
        width=64 if settings.quick else WIDTH,
        layers=1 if settings.quick else LAYERS,
        vocabulary=vocabulary,
        positions=workload.LONGEST,
    )
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_cores = cores[:1], cores[1:]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = tiny_models.save(Path(folder) / "model", shape, reward=True)
        contestants = _start(model, Path(folder), server_core, stack, quick=settings.quick)
        offline = Offline(model, server_core, vocabulary)
        stack.callback(offline.close)
        with servers.pinned(client_cores):
            _measure(contestants, offline, settings, vocabulary)
    print_table(contestants, offline)
    return path | _results(contestants, offline, settings)


def _start(
    model: Path, folder: Path, core: Sequence[int], stack: contextlib.ExitStack, *, quick: bool
) -> dict[str, Contestant]:
    """Start every available server; report the missing ones."""
    start = stack.enter_context
    ours, pid, _ = start(servers.reward_service(model, core=core, log=folder / "ours.log"))
    settings = {"reward.share_prompts": "false"}
    apart, apart_pid, _ = start(
        servers.reward_service(model, core=core, log=folder / "apart.log", settings=settings)
    )
    rlhf, rlhf_pid = start(servers.other("openrlhf_style", model, core=core, log=folder / "openrlhf.log"))
    found = {
        "grpc": Contestant(ours, clients.Grpc(), [pid]),
        "grpc_without_sharing": Contestant(apart, clients.Grpc(), [apart_pid], loads=("shared",), few=False),
        "openrlhf_style": Contestant(rlhf, _OPENRLHF, [rlhf_pid]),
    }
    if quick:
        return found
    url, gateway_pid = start(servers.gateway(ours, core=core, log=folder / "gateway.log"))
    rewards = clients.Http("/v1/rewards", clients.responses, "rewards")
    found["http"] = Contestant(url, rewards, [pid, gateway_pid])
    found["oip"] = Contestant(ours, clients.OpenInference("reward"), [pid])
    piped, piped_pid = start(servers.other("pipeline_server", model, core=core, log=folder / "pipeline.log"))
    found["pipeline"] = Contestant(piped, _OPENRLHF, [piped_pid])
    return found | _triton(model, core, stack)


def _triton(model: Path, core: Sequence[int], stack: contextlib.ExitStack) -> dict[str, Contestant]:
    """Start the variants of Triton, if it is available."""
    try:
        baselines = importlib.import_module("benchmarks.triton_baselines")
        server = stack.enter_context(baselines.served(model, cores=core))
    except (FairleadError, ModuleNotFoundError) as error:
        print(f"without Triton: {error}", file=sys.stderr)
        return {}
    return {
        name: Contestant(
            server.address,
            clients.OpenInference(name),
            [server.process.pid],
            loads=("mixed",),
            few=name == "triton_ragged",
        )
        for name in baselines.VARIANTS
    }


def _measure(
    contestants: Mapping[str, Contestant], offline: Offline, settings: Settings, vocabulary: int
) -> None:
    """Let all take turns. In the warm-up turn all get the same sequences and must give equal scores;
    later every contestant gets prompts of its own, so that nobody profits from what another has asked.
    """
    seeds = itertools.count(1)

    def turn(load: str, count: int, seed: int | None) -> None:
        wanted = _sequences(settings) // (1 if count == CLIENTS else 8)
        number = wanted if load == "mixed" else max(2, wanted // workload.ANSWERS)
        make: Callable[..., list[workload.Request]] = getattr(workload, load)
        for one in contestants.values():
            if load not in one.loads or (count != CLIENTS and not one.few):
                continue
            requests = make(number, seed=next(seeds) if seed is None else seed, vocabulary=vocabulary)
            asking = clients.run(one.dialect, one.address, requests, clients=count, processes=one.processes)
            one.found.setdefault((load, count), []).append(asyncio.run(asking))
        if count in (1, CLIENTS) and load == "mixed":
            # The sequences of the single client are also timed one by one.
            offline.ask(load, number, next(seeds), separate=number if count == 1 else 0)

    for load in ("mixed", "shared"):
        turn(load, CLIENTS, 0)
        _check_equal(contestants, load)
    for one in contestants.values():
        one.found.clear()
    offline.turns.clear()
    for number in range(settings.rounds(3)):
        for count in (*(FEW if number == 0 and not settings.quick else ()), CLIENTS):
            for load in ("mixed", "shared"):
                turn(load, count, None)


def _sequences(settings: Settings) -> int:
    return 16 if settings.quick else SEQUENCES


def _check_equal(contestants: Mapping[str, Contestant], load: str) -> None:
    """Check that all scores are equal."""
    flat = [
        [score for scores in one.found[load, CLIENTS][-1].scores for score in scores]
        for one in contestants.values()
        if load in one.loads
    ]
    for scores in flat[1:]:
        for one, other in zip(flat[0], scores, strict=True):
            if abs(one - other) > TOLERANCE * max(1.0, abs(one)):
                raise AssertionError(f"{load}: two servers score {one:g} and {other:g}: nothing to compare")


def _results(
    contestants: Mapping[str, Contestant], offline: Offline, settings: Settings
) -> dict[str, Result]:
    """Return results by wall-clock time, with limits, and by CPU time, which other work disturbs less."""
    found: dict[str, Result] = {}
    many = [turn for turn in offline.turns if not turn["separate"]]
    optimum = {
        key: _sequences(settings) / statistics.median(turn[key] for turn in many)
        for key in ("seconds", "cpu_seconds")
    }
    for name, load, other, least in (
        ("of_offline_optimum", "mixed", "", OPTIMUM_AT_LEAST),
        ("vs_openrlhf_style", "shared", "openrlhf_style", OPENRLHF_AT_LEAST),
        ("shared_prefix_gain", "shared", "grpc_without_sharing", SHARING_AT_LEAST),
        ("vs_triton_ragged", "mixed", "triton_ragged", RAGGED_AT_LEAST),
        ("vs_openrlhf_style_mixed", "mixed", "openrlhf_style", None),
        ("vs_pipeline_mixed", "mixed", "pipeline", None),
    ):
        if other and other not in contestants:
            continue
        what = f"{load}, {CLIENTS} clients: {other or 'all known beforehand, best packing, no server'}"
        for cpu in (False, True):
            base = (
                contestants[other].rate(load, cpu=cpu)
                if other
                else optimum["cpu_seconds" if cpu else "seconds"]
            )
            ours, unit = contestants["grpc"].rate(load, cpu=cpu), f"sequences/{'CPU-' if cpu else ''}s"
            limit = None if cpu else least
            found[f"{name}_cpu" if cpu else name] = Result(ours, unit, base, what, at_least=limit)
    return found if settings.quick else found | _overhead(contestants["grpc"], offline)


def _overhead(ours: Contestant, offline: Offline) -> dict[str, Result]:
    """Return a single client's latency beyond the bare forward pass, for sequences of the same lengths."""
    bare = next(turn["separate"] for turn in offline.turns if turn["separate"])
    latencies = ours.found["mixed", 1][0].latencies_seconds
    beyond = statistics.median(a - b for a, b in zip(latencies, bare, strict=True))
    allowed = max(OVERHEAD_SECONDS, OVERHEAD_SHARE * statistics.median(bare))
    what = "allowed: 3 ms, or 10% of the bare forward pass"
    return {"overhead_at_one_client": Result(1000 * beyond, "ms", 1000 * allowed, what, at_most=1.0)}


def print_table(contestants: Mapping[str, Contestant], offline: Offline) -> None:
    """Print every figure as Markdown to standard error."""
    rows = [
        "| server | load | clients | sequences/s | sequences/CPU-s | p50 ms | p99 ms |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, contestant in contestants.items():
        for load, count in sorted(contestant.found):
            p50, p99 = (1000 * contestant.quantile(load, count, share) for share in (0.5, 0.99))
            rate, by_cpu = contestant.rate(load, count), contestant.rate(load, count, cpu=True)
            rows.append(f"| {name} | {load} | {count} | {rate:.1f} | {by_cpu:.1f} | {p50:.0f} | {p99:.0f} |")
    for turn in offline.turns:
        times = ", ".join(f"{name} {took:.3f}" for name, took in turn.items() if isinstance(took, float))
        rows.append(f"offline, mixed: {times}")
    print("\n".join(rows), file=sys.stderr)
