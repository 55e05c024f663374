"""Score many requests over a bidirectional stream: requests to send, requests in flight, and outcomes.

Sits between `AsyncRewardClient.score_stream` and `fairlead.rpc`. It continues on another stream when one
breaks: every request without an outcome is sent again, which is safe because scoring has no side effects.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Generic, TypeVar

import grpc
from grpc import aio

from fairlead import codec
from fairlead.clients.bulk import each
from fairlead.errors import CorruptData, FairleadError, InvalidInput
from fairlead.rpc.status import error_from_code
from fairlead.types import Scores
from fairlead.v1 import reward_service_pb2 as pb

_Input = TypeVar("_Input")
StreamCall = aio.StreamStreamCall[pb.ScoreStreamRequest, pb.ScoreStreamResponse]
ScoreOutcome = tuple[int, Scores | FairleadError]
"""Index of a request, and its scores or its error."""


class ScoreStream(Generic[_Input]):
    """The state of one bulk scoring. Inputs are read no faster than outcomes are taken."""

    def __init__(
        self,
        inputs: Iterable[_Input] | AsyncIterable[_Input],
        build: Callable[[_Input], pb.ScoreRequest],
        *,
        max_in_flight: int,
    ) -> None:
        """
        Args:
            inputs: read in the event loop.
            build: converts an input to a request, or raises InvalidInput.
            max_in_flight: largest number of requests that are read and whose outcome is not taken.
        """
        self._inputs = each(inputs)
        self._build = build
        self._max_in_flight = max_in_flight
        self._reading: asyncio.Task[list[_Input]] | None = None
        self._has_ended = False
        self._failure: Exception | None = None
        self._count = 0
        self._in_flight = 0
        self._taken = asyncio.Event()
        self._unanswered: dict[int, pb.ScoreStreamRequest] = {}
        self._outcomes: asyncio.Queue[ScoreOutcome | Exception | None] = asyncio.Queue()

    async def communicate(self, call: StreamCall) -> AsyncGenerator[ScoreOutcome, None]:
        """Send and receive on a stream until every input has its outcome.

        Raises:
            AioRpcError: if the stream breaks; called with another stream, it continues where it was.
            Exception: raised by the inputs, after every request before it has its outcome.
        """
        tasks = [asyncio.create_task(work) for work in (self._send(call), self._receive(call))]
        try:
            while (outcome := await self._outcomes.get()) is not None:
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
                self._in_flight -= 1
                self._taken.set()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Stop reading inputs."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _send(self, call: StreamCall) -> None:
        try:
            for request in list(self._unanswered.values()):
                await call.write(request)
            while not self._has_ended:
                found = await self._next()
                if found is not None:
                    await call.write(found)
            await call.done_writing()
        except (aio.AioRpcError, asyncio.InvalidStateError):
            return  # the receiver reports why the stream ended

    async def _next(self) -> pb.ScoreStreamRequest | None:
        """Return the next request to send; None if the input was invalid or the inputs have ended."""
        while self._in_flight >= self._max_in_flight:
            self._taken.clear()
            await self._taken.wait()
        if self._reading is None:
            self._reading = asyncio.create_task(_next(self._inputs))
        # A stream that breaks cancels this wait; it must not cancel the caller's iterator.
        await asyncio.wait([self._reading])
        reading, self._reading = self._reading, None
        try:
            found = reading.result()
        except Exception as error:  # noqa: BLE001 - raised to the caller after the outcomes before it
            self._failure, found = error, []
        if not found:
            self._has_ended = True
            return None
        number, self._count = self._count, self._count + 1
        self._in_flight += 1
        try:
            request = pb.ScoreStreamRequest(sequence=number, request=self._build(found[0]))
        except InvalidInput as error:
            self._outcomes.put_nowait((number, error))
            return None
        self._unanswered[number] = request
        return request

    async def _receive(self, call: StreamCall) -> None:
        try:
            async for response in call:
                request = self._unanswered.pop(response.sequence, None)
                if request is None:
                    raise CorruptData(f"reward: received a response to unknown request {response.sequence}")
                self._outcomes.put_nowait((response.sequence, _outcome(response, request)))
            if self._unanswered:
                raise CorruptData(f"reward: the stream ended before {len(self._unanswered)} responses")
            self._outcomes.put_nowait(None)
        except (aio.AioRpcError, FairleadError) as error:
            self._outcomes.put_nowait(error)


def _outcome(response: pb.ScoreStreamResponse, request: pb.ScoreStreamRequest) -> Scores | FairleadError:
    if response.HasField("error"):
        error = response.error
        code = _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
        delay = error.retry_after_seconds or 1.0
        return error_from_code(code, error.message, retry_after_seconds=delay, where="reward")
    if len(response.response.scores) != len(request.request.items):
        count = len(response.response.scores)
        return CorruptData(f"reward: received {count} scores for {len(request.request.items)} items")
    return codec.scores_from_pb(response.response)


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


async def _next(inputs: AsyncIterator[_Input]) -> list[_Input]:
    # StopAsyncIteration cannot be the result of a task, and any value may be an input.
    async for one in inputs:
        return [one]
    return []
