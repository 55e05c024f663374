"""Real services and the trainer give the same log-probs for the same weights and tokens.

The oracle is a plain forward pass of each single sequence in float64.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from fairlead.clients import AsyncPolicyClient, AsyncReferenceClient
from fairlead.config import load
from fairlead.config.base import ComputeSection
from fairlead.local.serving import serving
from fairlead.nn.loading import load_causal_lm
from fairlead.types import Completion, SamplingParams, TokenPair
from tests.service_process import SharedServices
from tests.tiny import VOCABULARY_SIZE
from trainer.sequences import TokenSequence, pad, response_logprobs

PROMPT_LENGTHS = (1, 2, 7, 19, 40)
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.2}
"""Largest difference of one token. bfloat16 has 8 bits of mantissa, so rounded weights and hidden states move
log-probs of −1 … −8 by some hundredths (measured here: at most 0.08)."""


def naive(path: Path, pair: TokenPair, temperature: float) -> list[float]:
    """Return the log-prob of each response token: one sequence at a time, float64, no padding, no cache."""
    model = load_causal_lm(str(path), ComputeSection(device="cpu")).double()
    with torch.inference_mode():
        logits = (
            model(torch.tensor([[*pair.prompt_token_ids, *pair.response_token_ids]])).logits[0] / temperature
        )
    table = logits.log_softmax(-1)
    start = len(pair.prompt_token_ids) - 1
    return [float(table[start + index, token]) for index, token in enumerate(pair.response_token_ids)]


def left_padded(path: Path, pairs: Sequence[TokenPair], temperature: float) -> list[list[float]]:
    """Return log-probs from one left-padded batch, with positions from the mask."""
    model = load_causal_lm(str(path), ComputeSection(device="cpu"))
    rows = [[*pair.prompt_token_ids, *pair.response_token_ids] for pair in pairs]
    width = max(map(len, rows))
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(tokens, attention_mask=mask, position_ids=positions).logits / temperature
    table = logits.log_softmax(-1)
    return [
        [float(table[row, index - 1, tokens[row, index]]) for index in range(width - count, width)]
        for row, count in enumerate(len(pair.response_token_ids) for pair in pairs)
    ]


def by_trainer(path: Path, pairs: Sequence[TokenPair], temperature: float, dtype: str) -> list[list[float]]:
    model = load_causal_lm(str(path), ComputeSection(device="cpu"))
    batch = pad(
        [TokenSequence((*p.prompt_token_ids, *p.response_token_ids), len(p.prompt_token_ids)) for p in pairs],
        torch.device("cpu"),
    )
    with torch.inference_mode():
        found = response_logprobs(model, batch, temperature=temperature, dtype=getattr(torch, dtype))
    return [list(part) for part in _split(found.tolist(), [len(p.response_token_ids) for p in pairs])]


def _split(values: Sequence[float], lengths: Sequence[int]) -> list[Sequence[float]]:
    parts, start = [], 0
    for length in lengths:
        parts.append(values[start : start + length])
        start += length
    return parts


async def generate(
    policy: AsyncPolicyClient, prompts: Sequence[tuple[int, ...]], temperature: float
) -> list[Completion]:
    """Return one completion of each prompt, of different lengths, all requested at the same time."""
    calls = (
        policy.generate(
            prompt, SamplingParams(temperature=temperature, max_new_tokens=5 + 6 * index, seed=index)
        )
        for index, prompt in enumerate(prompts)
    )
    return [found[0] for found in await asyncio.gather(*calls)]


@asynccontextmanager
async def services(shared: SharedServices, folder: Path, dtype: str) -> AsyncIterator[dict[str, str]]:
    """Yield the addresses of a policy service and of a reference service with the same model."""
    if dtype == "float32":
        yield await asyncio.to_thread(shared.addresses, "policy", "reference")
        return
    settings = {"policy.dtype": dtype, "reference.dtype": dtype, "policy.max_slots": 3}
    config = load(overrides={"runs": str(folder), **settings})
    async with serving(config, {name: shared.models[name] for name in ("policy", "reference")}) as addresses:
        yield addresses


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
async def test_policy_reference_and_trainer_agree(shared: SharedServices, tmp_path: Path, dtype: str):
    model = shared.models["policy"]
    generator = torch.Generator().manual_seed(0)
    prompts = [
        tuple(torch.randint(4, VOCABULARY_SIZE, (length,), generator=generator).tolist())
        for length in PROMPT_LENGTHS
    ]
    worst: dict[tuple[str, float], float] = {}
    async with (
        services(shared, tmp_path, dtype) as addresses,
        AsyncPolicyClient(addresses["policy"]) as policy,
        AsyncReferenceClient(addresses["reference"]) as reference,
    ):
        for temperature in (0.7, 1.0):
            completions = await generate(policy, prompts, temperature)
            pairs = [
                TokenPair(prompt, completion.token_ids)
                for prompt, completion in zip(prompts, completions, strict=True)
            ]
            sides = {
                "policy": [completion.logprobs for completion in completions],
                "reference": await reference.logprobs(pairs, temperature=temperature),
                "trainer": by_trainer(model, pairs, temperature, dtype),
                "left padding": left_padded(model, pairs, temperature),
            }
            oracle = [naive(model, pair, temperature) for pair in pairs]
            for name, side in sides.items():
                worst[name, temperature] = max(
                    abs(one - other)
                    for ours, exact in zip(side, oracle, strict=True)
                    for one, other in zip(ours, exact, strict=True)
                )
    assert sum(len(completion.token_ids) for completion in completions) > 40
    assert {name: gap for name, gap in worst.items() if gap > TOLERANCE[dtype]} == {}
