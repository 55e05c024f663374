"""The decoder on a GPU: the log-probs of a plain forward pass, and weights swapped in place."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fairlead.nn.loading import torch_device
from fairlead.types import SamplingParams, WeightVersion
from services.policy.cache_check import check_cache
from services.policy.decoder import Decoder
from services.policy.replacement import Replacement
from services.policy.sample_state import SampleState
from services.policy.sampler import stream_key

VOCABULARY = 1_024
V1, V2 = WeightVersion(1, 0), WeightVersion(1, 1)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1}
"""Largest difference of a log-prob from a plain forward pass of the same model. bfloat16 has 8 bits of
mantissa, and kernels for one token and for many round differently."""


def make_model(dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval().to("cuda", dtype)


def make_samples(count: int) -> list[SampleState]:
    rng = random.Random(0)
    return [
        SampleState(
            prompt=tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 60))),
            sampling=SamplingParams(temperature=0.7),
            key=stream_key(0, index),
            stop_ids=frozenset(),
            limit=rng.randint(1, 40),
        )
        for index in range(count)
    ]


def drive(decoder: Decoder, samples: list[SampleState]) -> None:
    waiting = list(samples)
    while waiting or decoder.running:
        free = decoder.slots - len(decoder.running)
        if waiting and free >= min(4, len(waiting)):
            decoder.add(waiting[:free], V1)
            waiting = waiting[free:]
        decoder.remove([sample for sample in decoder.running if sample.finish_reason])
        if decoder.running:
            decoder.step(V1)
            decoder.remove([sample for sample in decoder.running if sample.finish_reason])


@torch.inference_mode()
def worst_difference(model: PreTrainedModel, samples: list[SampleState]) -> float:
    worst = 0.0
    for sample in samples:
        ids = torch.tensor([[*sample.prompt, *sample.token_ids]], device="cuda")
        logits = model(input_ids=ids, use_cache=False).logits[0, len(sample.prompt) - 1 : -1]
        logprobs = (logits.double() / sample.sampling.temperature).log_softmax(-1)
        tokens = torch.tensor(sample.token_ids, device="cuda")[:, None]
        expected = logprobs.gather(-1, tokens)[:, 0].cpu()
        got = torch.tensor(sample.logprobs, dtype=torch.float64)
        worst = max(worst, (got - expected).abs().max().item())
    return worst


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_logprobs_match_a_plain_forward_pass(dtype: torch.dtype) -> None:
    model = make_model(dtype)
    check_cache(model, longest=128)
    samples = make_samples(60)
    drive(Decoder(model, slots=16), samples)
    assert worst_difference(model, samples) < TOLERANCE[dtype]


def test_swap_uses_the_new_weights(tmp_path) -> None:
    model, new = make_model(torch.float32), make_model(torch.float32, seed=1)
    save_file({name: tensor.cpu() for name, tensor in new.state_dict().items()}, tmp_path / "m.safetensors")
    decoder = Decoder(model, slots=16)
    before = make_samples(10)
    drive(decoder, before)
    old = copy.deepcopy(model)
    Replacement.read(tmp_path, model).apply()
    after = make_samples(10)
    drive(decoder, after)
    assert worst_difference(old, before) < 1e-5
    assert worst_difference(new, after) < 1e-5
    assert [sample.token_ids for sample in before] != [sample.token_ids for sample in after]


def test_cudnn_attention_is_disabled() -> None:
    torch_device("cuda")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
