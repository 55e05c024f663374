"""vLLM keeps the contract of an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from tests.engine_contract import *  # noqa: F403
from tests.engine_world import EngineWorld, tiny
from tests.vllm.world import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    # Of vLLM's own imports.
    pytest.mark.filterwarnings("ignore"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineWorld]:
    root = tmp_path_factory.mktemp("vllm")
    model = tiny(root / "model", seed=0)
    registry = CollectorRegistry()
    async with serving(root / "model", registry) as engine:
        yield EngineWorld(engine, model, registry, root)
