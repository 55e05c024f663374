"""The policy service as a process: readiness, damaged weights, drain under load, exit codes."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from safetensors.torch import load_file, save_file

from fairlead import PolicyClient
from fairlead.errors import StaleWeights
from fairlead.transports.weights.base import Ancestor
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import SamplingParams, WeightVersion
from fairlead.v1 import policy_service_pb2 as pb
from fairlead.v1 import policy_service_pb2_grpc as pb_grpc
from fairlead.v1 import tokens_pb2
from tests.service_process import Process, Starter
from tests.tiny import tiny_causal_lm

# A busy machine may take minutes to start a process that imports torch.
pytestmark = pytest.mark.timeout(400)
SAMPLING = SamplingParams(max_new_tokens=6, seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    starter = Starter(tmp_path)

    def start_one(path: Path | str, **settings: object) -> Process:
        named = {key.replace("__", "."): value for key, value in settings.items()}
        return starter("policy", path, **({"runs": tmp_path} | named))

    try:
        yield start_one
    finally:
        starter.stop()


def publish(store: FilesystemWeightStore, model: Path, version: WeightVersion, *, scale: float = 1.0) -> None:
    state = {name: tensor * scale for name, tensor in load_file(model / "model.safetensors").items()}
    with store.publish(version, parent=None, lineage=(Ancestor(1, 0),)) as folder:
        save_file(state, folder / "model.safetensors")


class RawLoad:
    """Calls a replica in a loop through a stub without retries, until it is refused."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.sent = 0
        self.refusals: list[tuple[float, grpc.StatusCode, str]] = []
        self.answered = 0
        self.broken: list[str] = []

    async def run(self) -> None:
        async with aio.insecure_channel(self.address, options=[("grpc.enable_retries", 0)]) as channel:
            stub: Any = pb_grpc.PolicyServiceStub(channel)
            await asyncio.gather(*(self._loop(stub, number) for number in range(24)))

    async def _loop(self, stub: Any, number: int) -> None:
        while True:
            self.sent += 1
            started = time.monotonic()
            request = pb.GenerateRequest(
                tokens=tokens_pb2.TokenSequence(token_ids=[1, 4 + number]),
                sampling=tokens_pb2.SamplingParams(temperature=1, top_p=1, max_new_tokens=60, seed=self.sent),
                num_samples=2,
            )
            begun = False
            try:
                if number % 2:
                    await stub.Generate(request, timeout=60)
                else:
                    async for _ in stub.GenerateStream(pb.GenerateStreamRequest(request=request), timeout=60):
                        begun = True
            except aio.AioRpcError as error:
                if begun:
                    self.broken.append(str(error))
                self.refusals.append((started, error.code(), error.details() or ""))
                return
            self.answered += 1


async def sigterm_under_load_fails_no_accepted_call(process: Process) -> None:
    """Check how a service with 4 slots ends while 24 callers wait for it."""
    load = RawLoad(process.address)
    task = asyncio.create_task(load.run())
    async with asyncio.timeout(60):
        while load.answered < 50:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    signalled = time.monotonic()
    process.popen.send_signal(signal.SIGTERM)
    await asyncio.wait_for(task, 60)
    assert await asyncio.to_thread(process.popen.wait, 30) == 0
    assert load.broken == []
    assert {code for _, code, _ in load.refusals} == {grpc.StatusCode.UNAVAILABLE}
    # A refused call was started at the signal or later: every accepted call was answered.
    assert min(started for started, _, _ in load.refusals) >= signalled - 0.01, load.refusals
    assert "RPCs cancelled" not in process.log.read_text()


def test_first_weights_then_a_damaged_version_then_sigterm_under_load(
    model: Path, start: Callable[..., Process], tmp_path: Path
) -> None:
    store = FilesystemWeightStore(tmp_path / "run" / "weights")
    process = start(model, policy__max_slots=4)
    process.until(lambda: "listens on" in process.log.read_text(), seconds=240)
    assert process.get("/healthz")[0] == 200
    assert process.get("/readyz")[0] == 503
    publish(store, model, WeightVersion(1, 0))
    process.until(lambda: process.get("/readyz")[0] == 200, seconds=120)
    with PolicyClient(process.address, timeout_seconds=30) as client:
        assert client.info().weight_version == WeightVersion(1, 0)
        first = client.generate("w1 w2", SAMPLING)[0]
        assert [span.version for span in first.version_spans] == [WeightVersion(1, 0)]
        publish(store, model, WeightVersion(1, 1), scale=0.5)
        second = client.generate("w1 w2", SAMPLING, min_version=WeightVersion(1, 1))[0]
        assert [span.version for span in second.version_spans] == [WeightVersion(1, 1)]
        assert second.logprobs[0] != first.logprobs[0]

        staging = FilesystemWeightStore(tmp_path / "staging")
        publish(staging, model, WeightVersion(1, 2))
        shard = staging.root / "1-2" / "model.safetensors"
        with shard.open("r+b") as file:
            file.truncate(shard.stat().st_size - 100)
        (staging.root / "1-2").rename(store.root / "1-2")
        failures = "fairlead_policy_fetch_failures_total"
        process.until(lambda: f"{failures} 0.0" not in process.get("/metrics")[1])
        assert "weights 1-2 not loaded, 1-1 remain in use" in process.log.read_text()
        assert client.generate("w1 w2", SAMPLING)[0] == second
        with pytest.raises(StaleWeights, match="needs weights 1-2 or newer; 1-1 are in use"):
            client.generate("w1 w2", SAMPLING, min_version=WeightVersion(1, 2), timeout_seconds=2)
        assert process.get("/readyz")[0] == 200
    asyncio.run(sigterm_under_load_fails_no_accepted_call(process))


@pytest.mark.slow  # test_local_serving.py has a service that cannot load its model
def test_unloadable_model_ends_the_process_with_one_line(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    truncated = tiny_causal_lm(tmp_path / "truncated") / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:2_000])
    process = start(truncated.parent)
    assert process.popen.wait(90) == 2
    last = process.log.read_text().strip().splitlines()[-1]
    assert last.startswith("policy: cannot load the model")
    assert "Traceback" not in process.log.read_text()


def test_sigterm_while_loading_ends_the_process_at_once(model: Path, start: Callable[..., Process]) -> None:
    process = start(model)
    process.until(lambda: process.get("/healthz")[0] == 200)
    assert process.stop() == 0
    assert "Traceback" not in process.log.read_text()
