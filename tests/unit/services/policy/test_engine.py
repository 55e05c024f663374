"""The embedded engine beyond the contract of engines: the model's own answers, and failures."""

from __future__ import annotations

import asyncio

import pytest
import torch
from transformers import PreTrainedModel

from fairlead.errors import Unavailable
from fairlead.types import (
    FinishReason,
    SamplingParams,
    VersionSpan,
)
from tests.tiny import VOCABULARY_SIZE, tiny_tokenizer
from tests.unit.services.policy.policy_world import (
    V0,
    model_without_end,
    request,
    running,
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return model_without_end(tmp_path_factory.mktemp("model"))


async def test_completion_matches_the_model(loaded: PreTrainedModel) -> None:
    async with running(loaded) as engine:
        greedy = SamplingParams(temperature=0, max_new_tokens=8)
        (completion,) = await engine.generate(request(greedy), deadline=None)
    expected = loaded.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=8, do_sample=False)[0, 3:].tolist()
    assert list(completion.token_ids) == expected
    assert completion.text == tiny_tokenizer().decode(expected, skip_special_tokens=True)
    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.version_spans == (VersionSpan(V0, 0, 8),)
    assert not completion.mixed_cache


async def test_engine_is_unavailable_without_weights(loaded: PreTrainedModel) -> None:
    async with running(loaded, initial=None) as engine:
        assert engine.version is None
        with pytest.raises(Unavailable, match="no weights yet"):
            await engine.generate(request(), deadline=None)
        with pytest.raises(Unavailable, match="no weights yet"):
            _ = engine.info


async def test_failed_forward_passes_fail_requests_and_then_the_engine(
    loaded: PreTrainedModel,
) -> None:
    async with running(loaded, max_slots=2) as engine:
        broken = asyncio.create_task(engine.wait_failed())
        outside = (1, VOCABULARY_SIZE + 5)  # an id that the servicer would refuse
        for _ in range(2):
            with pytest.raises(IndexError):
                await engine.generate(request(prompt=outside), deadline=None)
        assert await engine.generate(request(), deadline=None)
        assert not broken.done()
        for _ in range(3):
            with pytest.raises(IndexError):
                await engine.generate(request(prompt=outside), deadline=None)
        with pytest.raises(IndexError):
            await broken
        with pytest.raises(Unavailable):
            await engine.generate(request(), deadline=None)
