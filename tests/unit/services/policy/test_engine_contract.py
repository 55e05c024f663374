"""The embedded engine keeps the contract of an engine, with each of its caches."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config.serving import PolicySection
from fairlead.nn import loading
from services.policy.transformers_engine import TransformersEngine
from tests.engine_contract import *  # noqa: F403
from tests.engine_world import V0, EngineWorld, limits, model_info, tiny

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["never", "always"])
async def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EngineWorld]:
    root = tmp_path_factory.mktemp("embedded")
    model = tiny(root / "model", seed=0)
    registry = CollectorRegistry()
    engine = TransformersEngine(
        copy.deepcopy(model),
        loading.load_tokenizer(str(root / "model")),
        model_info(root / "model"),
        limits=limits(),
        policy_metrics=metrics.PolicyMetrics(registry),
        section=PolicySection(static_cache=request.param),
        initial=V0,
    )
    yield EngineWorld(engine, model, registry, root)
    await asyncio.to_thread(engine.close)
