"""A further node of a policy whose vLLM is divided among several: `python -m services.policy.vllm.node`.

It has the workers of its GPUs and no server: the policy service on the first node, which has the same
configuration, schedules, and sends them the work. When its workers end, it ends with an error, and so must
the whole group (k8s/components/policy-nodes).
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from fairlead.config import RunConfig
from fairlead.errors import ConfigError, EngineFailed
from services.runtime import process

if TYPE_CHECKING:
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor


async def run(config: RunConfig) -> None:
    """Serve the first node until a signal.

    Raises:
        ConfigError: if the run has no such nodes, or this is the first.
        EngineFailed: if vLLM's workers on this node end.
        Stopped: at a signal.
    """
    stopped = asyncio.Event()
    process.on_stop(stopped.set)
    stopping = asyncio.create_task(stopped.wait())
    starting = asyncio.create_task(asyncio.to_thread(_start, config))
    await asyncio.wait((stopping, starting), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():  # It waits for the first node; the process ends without it.
        raise process.Stopped
    executor = starting.result()
    ended = asyncio.create_task(asyncio.to_thread(executor.start_worker_monitor, inline=True))
    await asyncio.wait((stopping, ended), return_when=asyncio.FIRST_COMPLETED)
    executor.shutdown()
    if stopping.done():
        raise process.Stopped
    raise EngineFailed("vLLM's workers on this node have ended; the first node says why in its log")


def _start(config: RunConfig) -> MultiprocExecutor:
    """Start the workers of this node; return when the first node has met them."""
    from fairlead.nn import loading
    from services.policy.vllm import options

    path = config.policy.path or str(config.folder.sft_model)
    model = loading.causal_lm_without_weights(path)
    longest = loading.max_sequence_tokens(model, config.policy.max_sequence_tokens)
    arguments = options.engine_args(config, path, max_sequence_tokens=longest)
    if arguments.nnodes == 1 or arguments.node_rank == 0:
        raise ConfigError(
            "policy.vllm.node_rank",
            got=f"{arguments.node_rank} of {arguments.nnodes} nodes",
            allowed="1 or more: the first node runs `python -m services.policy`",
        )
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    return MultiprocExecutor(arguments.create_engine_config(headless=True), monitor_workers=False)


if __name__ == "__main__":
    sys.exit(process.main("policy", run))
