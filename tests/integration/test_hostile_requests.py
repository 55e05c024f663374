"""What a refused request costs: event-loop time and memory, for every route and RPC; see docs/security.md.

The services and the gateway run in one event loop of a separate process, which measures itself: the CPU time
of the process between two turns of the loop, and its peak memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import http.client
import multiprocessing
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import pytest

from tests import hostile_requests as hostile
from tests.hostile_requests import Request
from tests.tiny import tiny_causal_lm, tiny_reward_model

MAX_LOOP_SECONDS = 0.05
FIXED_BYTES = 16 << 20
"""Memory beyond a multiple of the body: the values of a body within all limits, a decompressed body."""
TRIES = 4


@dataclass
class Cost:
    """What one request cost the server."""

    loop_seconds: float
    """Longest time that the event loop was busy."""
    peak_bytes: int
    """Growth of the process's memory at its peak."""

    def is_low(self, num_bytes: int, *, over_grpc: bool) -> bool:
        """Whether it is within the limits for a request of this size."""
        # gRPC itself holds the message that it received next to the copy that it passes on.
        copies = 3 if over_grpc else 2
        most = copies * num_bytes + FIXED_BYTES
        return self.loop_seconds <= MAX_LOOP_SECONDS and self.peak_bytes <= most


class Probe:
    """Measures the process that it runs in."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        last = time.process_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.process_time()
            self.longest = max(self.longest, now - last)
            last = now


def memory(name: str) -> int:
    """Return VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    raise AssertionError(name)


def reset_memory() -> int:
    """Return free memory to the system and reset the peak; return what is in use, in bytes."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


@contextlib.asynccontextmanager
async def weights_server(folder: Path) -> AsyncIterator[str]:
    """Run the weights service of an empty store; yield its address."""
    from prometheus_client import CollectorRegistry

    from fairlead import metrics
    from fairlead.config.infrastructure import ObserveSection, WeightsSection
    from fairlead.transports.weights.filesystem import FilesystemWeightStore
    from fairlead.transports.weights.sender import Sender
    from fairlead.transports.weights.shard_servicer import SERVICE_NAME
    from services.runtime.server import ModelServer
    from services.weights.registry import Registry
    from services.weights.servicer import WeightServicer, wire_limits

    section = WeightsSection(bind="127.0.0.1:0")
    registry = CollectorRegistry()
    store = FilesystemWeightStore(folder)
    sender = Sender(store, section, metrics.WeightsMetrics(registry))
    servicer = WeightServicer(store, Registry(fan_out=2, lease_seconds=10.0), sender)
    async with ModelServer("weights", section, ObserveSection(), registry=registry) as server:
        address = await server.start(servicer.add_to, [SERVICE_NAME], wire_limits())
        server.set_ready(True)
        yield address


async def serve(folder: Path, pipe: Connection) -> None:
    from prometheus_client import CollectorRegistry

    from fairlead import metrics
    from fairlead.config.infrastructure import ObserveSection
    from fairlead.config.serving import ReferenceSection
    from services.batching.batcher import MicroBatcher
    from services.reference.scorer import ReferenceScorer
    from services.reference.servicer import SERVICE_NAME, ReferenceServicer, wire_limits
    from services.runtime.server import ModelServer
    from tests.gateway_world import gateway, policy_server
    from tests.unit.services.reward.reward_world import reward_service

    section = ReferenceSection(device="cpu", bind="127.0.0.1:0")
    registry = CollectorRegistry()
    async with contextlib.AsyncExitStack() as stack:
        reward = await stack.enter_async_context(
            reward_service(tiny_reward_model(folder / "reward"), allow_reload="always")
        )
        policy = await stack.enter_async_context(policy_server(folder / "policy"))
        http = await stack.enter_async_context(gateway(reward=reward.address, policy=policy.address))
        scorer = ReferenceScorer(str(tiny_causal_lm(folder / "reference")), section)
        batcher = MicroBatcher(
            scorer.logprobs,
            section.batching,
            batcher_metrics=metrics.BatcherMetrics(registry),
            field_name="sequences",
        )
        await stack.enter_async_context(batcher)
        server = await stack.enter_async_context(
            ModelServer("reference", section, ObserveSection(), registry=registry)
        )
        reference = await server.start(
            ReferenceServicer(scorer, batcher).add_to, [SERVICE_NAME], wire_limits(section)
        )
        server.set_ready(True)
        weights = await stack.enter_async_context(weights_server(folder / "weights"))
        addresses = {
            "gateway": http.address,
            "reward": reward.address,
            "policy": policy.address,
            "reference": reference,
            "weights": weights,
        }
        await measure(pipe, addresses)


async def measure(pipe: Connection, addresses: dict[str, str]) -> None:
    probe = Probe()
    task = asyncio.create_task(probe.run())
    loop = asyncio.get_running_loop()
    pipe.send(addresses)
    before = 0
    while (command := await loop.run_in_executor(None, pipe.recv)) != "stop":
        if command == "begin":
            before = reset_memory()
            probe.longest = 0.0
            pipe.send(None)
        else:
            pipe.send(Cost(probe.longest, memory("VmHWM") - before))
    task.cancel()


def run(folder: Path, pipe: Connection) -> None:
    """Run the services, in the child process."""
    asyncio.run(serve(folder, pipe))


@pytest.fixture
def server(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=run, args=(tmp_path, theirs))
    process.start()
    try:
        assert pipe.poll(120)
        yield pipe, pipe.recv()
        pipe.send("stop")
        process.join(60)
    finally:
        process.kill()
        process.join()


def send_http(address: str, request: Request, body: bytes) -> str:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        # The server may answer and close the connection before it has read the whole body.
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            connection.request(request.method, request.path, body, request.headers)
        response = connection.getresponse()
        response.read()
        return str(response.status)
    except ConnectionError:
        return "closed"
    finally:
        connection.close()


def send_grpc(channel: grpc.Channel, request: Request, body: bytes) -> str:
    try:
        if request.path.endswith(hostile.STREAMS):
            list(channel.stream_stream(request.path)(iter([body]), timeout=60))
        elif request.path.endswith(hostile.RESPONSE_STREAMS):
            list(channel.unary_stream(request.path)(body, timeout=60))
        else:
            channel.unary_unary(request.path)(body, timeout=60)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_refused_request_costs_much(server, capsys):
    pipe, addresses = server
    size = [("grpc.max_send_message_length", -1)]
    names = [name for name in addresses if name != "gateway"]
    channels = {name: grpc.insecure_channel(addresses[name], size) for name in names}
    rows = []
    requests = [("gateway", one) for one in hostile.http_requests()]
    for service, request in [*requests, *hostile.grpc_requests()]:
        body = request.make()
        costs = []
        # Other threads of the process, and other processes, can only add to a measurement.
        while len(costs) < TRIES and not (
            costs and costs[-1].is_low(len(body), over_grpc=service != "gateway")
        ):
            pipe.send("begin")
            pipe.recv()
            if service == "gateway":
                status = send_http(addresses[service], request, body)
            else:
                status = send_grpc(channels[service], request, body)
            pipe.send("end")
            costs.append(pipe.recv())
        rows.append(
            (
                request,
                status,
                len(body),
                costs[-1],
                costs[-1].is_low(len(body), over_grpc=service != "gateway"),
            )
        )
    for channel in channels.values():
        channel.close()
    lines = [
        f"{request.path[-40:]:40} {request.name:20} {status:18} {num_bytes / 1e6:6.2f} MB "
        f"{cost.loop_seconds * 1e3:6.1f} ms {cost.peak_bytes / 1e6:7.1f} MB"
        for request, status, num_bytes, cost, _ in rows
    ]
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    assert not [row for row in rows if row[1].startswith("5") or row[1] in ("INTERNAL", "UNKNOWN")]
    assert not [row for row in rows if not row[-1]]
