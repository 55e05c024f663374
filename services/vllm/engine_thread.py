"""An `AsyncLLM` for callers that block: it runs in an event loop in a thread of its own.

A batch is one request of vLLM for each item, and is done when all of them are. Knows no service.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from fairlead.errors import ConfigError, EngineFailed, ReplicaLost, Unavailable
from services.vllm import memory
from services.vllm.install import in_one_line
from services.vllm.shutdown import shut_down

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Request = Callable[[AsyncLLM, _Item, str], AsyncGenerator[_Result, None]]
"""Starts the request of an item with an id; yields its outputs, the last of which is complete."""

_ENDED = "vLLM's engine has ended unexpectedly; the log names the reason"
_IDLE_SECONDS = 1.0
"""Time between two checks whether vLLM's processes are alive."""
_END_SECONDS = 5.0
"""Time that cancelled requests have to end."""


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
        self._service = service
        self._closing = False
        self._changing = threading.Lock()
        self._calls: set[Future[Any]] = set()
        try:
            settings = arguments.create_engine_config()
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ConfigError(
                f"{service}.engine",
                got=f"vllm, with {service}.path = {arguments.model!r}",
                allowed=f"a model and options that vLLM takes: {in_one_line(error)}",
            ) from error
        memory.check_free(settings, section=f"{service}.vllm")
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
            Unavailable: if it has ended before, or is closed before or meanwhile.
        """
        if self.failure.done():
            raise Unavailable(_ENDED)
        return self._wait(self._run(request, items))

    def call_workers(self, method: str, *arguments: object) -> None:
        """Call a method of `ServiceWorker` in every process of vLLM."""
        self._wait(self._llm.collective_rpc(method, args=arguments))

    def close(self) -> None:
        """End vLLM. A batch in progress fails with Unavailable."""
        with self._changing:
            if self._closing:
                return
            self._closing = True
            calls = list(self._calls)
        self._watching.cancel()
        for call in calls:
            call.cancel()
        shut_down(self._llm)
        self._end_loop()

    def _wait(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        stopping = f"the {self._service} service is stopping"
        with self._changing:
            if self._closing:
                work.close()
                raise Unavailable(stopping)
            call = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._calls.add(call)
        try:
            return call.result()
        except CancelledError:
            raise Unavailable(stopping) from None
        finally:
            with self._changing:
                self._calls.discard(call)

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
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    """Cancel all other tasks of the running loop, and wait until they have ended, at most `_END_SECONDS`."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_END_SECONDS)
