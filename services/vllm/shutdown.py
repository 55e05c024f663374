"""The end of an `AsyncLLM`, and of everything that vLLM itself does not end."""

from __future__ import annotations

import asyncio

from vllm.v1.engine.async_llm import AsyncLLM


def shut_down(llm: AsyncLLM) -> None:
    """End vLLM's processes and tasks, and the zmq context that vLLM leaves to the garbage collector.

    Called from another thread than that of the engine's event loop, while the loop runs.
    """
    resources = llm.engine_core.resources
    reader = resources.output_queue_task
    loop = None if reader is None or reader.get_loop().is_closed() else reader.get_loop()
    if loop is not None:
        asyncio.run_coroutine_threadsafe(_stop_reading(llm), loop).result()
    llm.shutdown()
    if loop is not None:
        # vLLM closes its sockets in a callback of the loop, which comes before this one.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
    resources.ctx.term()


async def _stop_reading(llm: AsyncLLM) -> None:
    if llm.output_handler is not None:
        # It would report the end of vLLM's processes as an error.
        llm.output_handler.cancel()
        await asyncio.gather(llm.output_handler, return_exceptions=True)
