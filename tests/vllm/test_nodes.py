"""One engine on two nodes: the service and a process of services.policy.vllm.node, both on this machine."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from tests.engine_world import CONTEXT, TOLERANCE, EngineWorld, differences, request, tiny
from tests.vllm.world import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3_600),
    pytest.mark.asyncio(loop_scope="module"),
    # Of vLLM's own imports.
    pytest.mark.filterwarnings("ignore"),
]

ENDS_WITHIN_SECONDS = 120.0


def _further_node(root: Path) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """Start the second node, as a pod of a LeaderWorkerSet does; return it and the options of both."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    options = {
        "kv_cache_memory_bytes": 64 << 20,
        "enforce_eager": True,
        "tensor_parallel_size": 2,
        "nnodes": 2,
        "master_port": port,
    }
    lines = [
        *("[policy]", 'engine = "vllm"', f'path = "{root / "model"}"', f"max_sequence_tokens = {CONTEXT}"),
        *("[policy.vllm]", *(f"{key} = {str(value).lower()}" for key, value in options.items())),
    ]
    (root / "run.toml").write_text("\n".join(lines))
    place = {"LWS_LEADER_ADDRESS": "127.0.0.1", "LWS_WORKER_INDEX": "1"}
    command = [sys.executable, "-m", "services.policy.vllm.node", "--config", str(root / "run.toml")]
    with (root / "node.log").open("wb") as log:
        return subprocess.Popen(command, env=os.environ | place, stdout=log, stderr=log), options


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[EngineWorld, subprocess.Popen[bytes]]]:
    root = tmp_path_factory.mktemp("nodes")
    model = tiny(root / "model", seed=0)
    # vLLM compiles kernels in its first step, for minutes on a busy machine.
    os.environ["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"] = "3600"
    further, options = _further_node(root)
    first = options | {"master_addr": "127.0.0.1", "node_rank": 0}
    registry = CollectorRegistry()
    try:
        async with serving(root / "model", registry, policy={"vllm": first}) as engine:
            yield EngineWorld(engine, model, registry, root), further
    finally:
        del os.environ["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"]
        further.kill()
        further.wait()


async def test_two_nodes_compute_what_the_model_does(nodes):
    world, further = nodes
    for seed in range(1, 4):
        version = await world.load(seed)
        for completion in await world.engine.generate(request(samples=2, seed=seed), deadline=None):
            assert {span.version for span in completion.version_spans} == {version}
            assert float(differences(world.models, completion).max()) <= TOLERANCE
    assert further.poll() is None


async def test_node_ends_without_an_error_at_a_signal(nodes):
    _, further = nodes
    further.terminate()
    assert await asyncio.to_thread(further.wait, ENDS_WITHIN_SECONDS) == 0
