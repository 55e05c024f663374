"""Shared by the engine tests: an engine with a tiny model whose samples end only at their length limit."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from fairlead import metrics
from fairlead.config.serving import PolicySection
from fairlead.types import (
    GenerationRequest,
    ModelInfo,
    SamplingParams,
    WeightVersion,
)
from services.policy.engine import Engine
from services.policy.front import EngineLimits
from services.policy.transformers_engine import TransformersEngine
from tests.tiny import VOCABULARY_SIZE, tiny_causal_lm, tiny_tokenizer

V0, V1, V2 = WeightVersion(0, 0), WeightVersion(1, 1), WeightVersion(1, 2)
CONTEXT = 128
SAMPLING = SamplingParams(max_new_tokens=12, seed=7)
EACH_CACHE = pytest.mark.parametrize("static_cache", ["never", "always"])
LONG = SamplingParams(max_new_tokens=10_000, seed=7)  # until the context is full


def model_without_end(folder: Path) -> PreTrainedModel:
    """Return a tiny model without an end token, so that the tests decide the length of samples."""
    model = AutoModelForCausalLM.from_pretrained(tiny_causal_lm(folder)).eval()
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    return model


def tokenizer_without_end() -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer without an end token."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


@asynccontextmanager
async def running(
    model: PreTrainedModel,
    *,
    initial: WeightVersion | None = V0,
    registry: CollectorRegistry | None = None,
    static_cache: str = "auto",
    **limits,
) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(
        copy.deepcopy(model),
        tokenizer_without_end(),
        ModelInfo("tiny", "f", VOCABULARY_SIZE, CONTEXT, "float32"),
        limits=EngineLimits(**limits),
        policy_metrics=metrics.PolicyMetrics(registry or CollectorRegistry()),
        section=PolicySection(static_cache=static_cache),
        initial=initial,
    )
    contract: Engine = engine
    try:
        yield engine
    finally:
        await asyncio.to_thread(contract.close)


def request(
    sampling: SamplingParams = SAMPLING, prompt: tuple[int, ...] = (1, 5, 6), **fields
) -> GenerationRequest:
    return GenerationRequest("test", prompt, sampling, **fields)


def new_weights(folder: Path, model: PreTrainedModel, *, seed: int) -> Path:
    """Write other weights of the model, in the layout of the weight store, and return the folder."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
    return folder
