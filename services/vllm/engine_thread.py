"""An `AsyncLLM` for callers that block: it runs in an event loop in a thread of its own.

A batch is one request of vLLM for each item, and is done when all of them are. Knows no service.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from fairlead.errors import ConfigError, EngineFailed, ReplicaLost, Unavailable
from services.vllm.install import in_one_line
from services.vllm.shutdown import shut_down

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Request = Callable[[AsyncLLM, _Item, str], AsyncGenerator[_Result, None]]
"""Starts the request of an item with an id; yields its outputs, the last of which is complete."""

_ENDED = "vLLM's engine has ended unexpectedly; the log names the reason"
_IDLE_SECONDS = 1.0
"""Time between two checks whether vLLM's processes are alive."""


class EngineThread:
    """One engine. Its methods block, and may be called from any thread."""

    def __init__(self, arguments: AsyncEngineArgs, *, service: str) -> None:
        """Start vLLM, which takes from half a minute to some minutes.

        Args:
            arguments: vLLM's arguments.
            service: name of the service, for errors.

        Raises:
            ConfigError: if vLLM does not take an option, or does not support the model.
            EngineFailed: if it does not start for another reason.
        """
        self.failure: Future[None] = Future()
        """Fails with EngineFailed if vLLM's processes end."""
        self._closing = False
        try:
            settings = arguments.create_engine_config()
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ConfigError(
                f"{service}.engine",
                got=f"vllm, with {service}.path = {arguments.model!r}",
                allowed=f"a model and options that vLLM takes: {in_one_line(error)}",
            ) from error
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()

        async def start() -> AsyncLLM:
            return AsyncLLM.from_vllm_config(settings, disable_log_stats=True)

        try:
            self._llm = self._wait(start())
        except Exception as error:
            self._end_loop()
            raise EngineFailed(
                f"vLLM did not start with {arguments.model!r}: {in_one_line(error)}"
            ) from error
        self._watching = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def run(self, request: Request[_Item, _Result], items: Sequence[_Item]) -> list[_Result]:
        """Run a request for each item; return their last outputs, in order.

        Raises:
            ReplicaLost: if vLLM ends meanwhile.
            Unavailable: if it has ended before.
        """
        if self.failure.done():
            raise Unavailable(_ENDED)
        return self._wait(self._run(request, items))

    def call_workers(self, method: str, *arguments: object) -> None:
        """Call a method of `ServiceWorker` in every process of vLLM."""
        self._wait(self._llm.collective_rpc(method, args=arguments))

    def close(self) -> None:
        """End vLLM. A batch in progress fails."""
        self._closing = True
        self._watching.cancel()
        shut_down(self._llm)
        self._end_loop()

    def _wait(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _run(self, request: Request[_Item, _Result], items: Sequence[_Item]) -> list[_Result]:
        outputs = (self._last(request(self._llm, item, uuid.uuid4().hex)) for item in items)
        found = await asyncio.gather(*outputs, return_exceptions=True)
        results = []
        for result in found:
            if isinstance(result, EngineDeadError):
                self._fail()
                raise ReplicaLost(_ENDED) from result
            if isinstance(result, BaseException):
                raise result
            results.append(result)
        return results

    async def _last(self, outputs: AsyncGenerator[_Result, None]) -> _Result:
        last: _Result | None = None
        async with aclosing(outputs) as stream:
            async for output in stream:
                last = output
        if last is None:
            raise Unavailable("vLLM returned nothing")
        return last

    async def _watch(self) -> None:
        while not self._llm.errored:  # noqa: ASYNC110 - vLLM notifies nobody
            await asyncio.sleep(_IDLE_SECONDS)
        self._fail()

    def _fail(self) -> None:
        if not self._closing:
            with suppress(InvalidStateError):
                self.failure.set_exception(EngineFailed(_ENDED))

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
