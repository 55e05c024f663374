"""Closed-loop clients of the servers: each sends its next request when it has received its answer.

Bodies are built before timing starts, so that a client costs little.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from grpc import aio

from benchmarks.serving.servers import cpu_seconds
from benchmarks.serving.workload import Pair, Request, text
from fairlead.v1 import reward_service_pb2 as pb
from fairlead.v1 import reward_service_pb2_grpc as pb_grpc

Score = Callable[[Any], Awaitable[Sequence[float]]]
"""Sends a prepared request."""


@dataclass(frozen=True, slots=True)
class Load:
    """Results of a number of clients."""

    seconds: float
    """Seconds from the first request to the last answer."""
    latencies_seconds: list[float]
    """Of every request, in order."""
    scores: list[list[float]]
    """Of every request, in order."""
    cpu_seconds: float
    """CPU seconds that the server used meanwhile."""

    @property
    def sequences_per_cpu_second(self) -> float:
        """Sequences per CPU second: the rate of a core that is never idle."""
        return sum(map(len, self.scores)) / self.cpu_seconds

    @property
    def sequences_per_second(self) -> float:
        """Sequences per second."""
        return sum(map(len, self.scores)) / self.seconds

    def quantile(self, share: float) -> float:
        """Return a quantile of the latencies, in seconds."""
        return float(np.quantile(self.latencies_seconds, share))


async def run(
    dialect: Dialect,
    address: str,
    requests: Sequence[Request],
    *,
    clients: int,
    processes: Sequence[int] = (),
) -> Load:
    """Send all requests; measure the CPU time of `processes`."""
    bodies = [dialect.body(request) for request in requests]
    latencies, scores = [0.0] * len(bodies), [list[float]()] * len(bodies)
    waiting = iter(range(len(bodies)))

    async def client(send: Score) -> None:
        for index in waiting:
            start = time.perf_counter()
            scores[index] = list(await send(bodies[index]))
            latencies[index] = time.perf_counter() - start

    async with AsyncExitStack() as stack:
        sends = await dialect.connect(address, clients, stack)
        used, began = cpu_seconds(processes), time.perf_counter()
        await asyncio.gather(*(client(send) for send in sends))
        seconds = time.perf_counter() - began
        return Load(seconds, latencies, scores, max(cpu_seconds(processes) - used, 1e-9))


class Dialect:
    """The protocol of a server."""

    def body(self, request: Request) -> Any:  # noqa: ANN401 - each dialect's own
        """Return the prepared form of a request."""
        raise NotImplementedError

    async def connect(self, address: str, clients: int, stack: AsyncExitStack) -> list[Score]:
        """Yield one sender per client."""
        raise NotImplementedError


class Grpc(Dialect):
    """`fairlead.v1.RewardService`, ids."""

    def body(self, request: Request) -> pb.ScoreRequest:
        """A message."""
        return pb.ScoreRequest(
            items=[
                pb.ScoreItem(tokens=pb.TokenPair(prompt_token_ids=prompt, response_token_ids=response))
                for prompt, response in request
            ]
        )

    async def connect(self, address: str, clients: int, stack: AsyncExitStack) -> list[Score]:
        """One channel for all."""
        channel = await stack.enter_async_context(aio.insecure_channel(address))
        score = pb_grpc.RewardServiceStub(channel).Score

        async def send(message: pb.ScoreRequest) -> Sequence[float]:
            response: pb.ScoreResponse = await score(message, timeout=300)
            return response.scores

        return [send] * clients


class OpenInference(Dialect):
    """KServe's protocol version 2 over gRPC, ids; ours and Triton's."""

    def __init__(self, model: str) -> None:
        """`model` is its name on the server."""
        self._model = model

    def body(self, request: Request) -> Any:  # noqa: ANN401 - generated without types
        """Ids padded to the longest, and their lengths."""
        from tritonclient.grpc import service_pb2

        rows = [(*prompt, *response) for prompt, response in request]
        counts = np.array([len(row) for row in rows], dtype=np.int64).reshape(-1, 1)
        tokens = np.zeros((len(rows), int(counts.max())), dtype=np.int64)
        for place, row in enumerate(rows):
            tokens[place, : len(row)] = row
        message = service_pb2.ModelInferRequest(model_name=self._model)
        for name, array in (("tokens", tokens), ("sequence_lengths", counts)):
            message.inputs.add(name=name, datatype="INT64", shape=array.shape)
            message.raw_input_contents.append(array.tobytes())
        return message

    async def connect(self, address: str, clients: int, stack: AsyncExitStack) -> list[Score]:
        """One channel for all."""
        from tritonclient.grpc import service_pb2_grpc

        channel = await stack.enter_async_context(aio.insecure_channel(address))
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer

        async def send(message: object) -> Sequence[float]:
            answer = await infer(message, timeout=300)
            place = [output.name for output in answer.outputs].index("rewards")
            rewards: list[float] = np.frombuffer(answer.raw_output_contents[place], dtype="<f4").tolist()
            return rewards

        return [send] * clients


class Http(Dialect):
    """JSON over persistent connections."""

    def __init__(self, path: str, build: Callable[[Request], object], rewards: str) -> None:
        """
        Args:
            path: of the URL.
            build: the body.
            rewards: key of the scores in the answer.
        """
        self._path, self._build, self._rewards = path, build, rewards

    def body(self, request: Request) -> bytes:
        """Headers and body."""
        content = json.dumps(self._build(request)).encode()
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    async def connect(self, address: str, clients: int, stack: AsyncExitStack) -> list[Score]:
        """A connection for each."""
        host, _, port = address.removeprefix("http://").partition(":")

        async def one() -> Score:
            reader, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)

            async def send(body: bytes) -> Sequence[float]:
                writer.write(body)
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length:")[2].split("\r\n")[0])
                content = json.loads(await reader.readexactly(length))
                if " 200 " not in head.splitlines()[0]:
                    raise RuntimeError(f"{head.splitlines()[0]}: {content}")
                return [one["reward"] if isinstance(one, dict) else one for one in content[self._rewards]]

            return send

        return [await one() for _ in range(clients)]


def whole(pair: Pair) -> str:
    """Return prompt and response as one text."""
    return text((*pair[0], *pair[1]))


def queries(request: Request) -> object:
    """Return OpenRLHF's body."""
    return {"query": [whole(pair) for pair in request]}


def responses(request: Request) -> object:
    """Return our gateway's body: one prompt and its responses."""
    return {
        "prompt": text(request[0][0]),
        "responses": [text(response) for _, response in request],
        "calibrated": False,
    }
