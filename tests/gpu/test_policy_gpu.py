"""The decoder on a GPU: the log-probs of a plain forward pass, and weights swapped in place."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fairlead.config.serving import PolicySection
from fairlead.nn.loading import torch_device
from fairlead.types import SamplingParams, WeightVersion
from services.policy.cache_check import check_cache
from services.policy.decoder import Decoder
from services.policy.replacement import Replacement
from services.policy.running_batch import RunningBatch
from services.policy.sample_state import SampleState
from services.policy.sampler import stream_key
from services.policy.static.choice import choose
from services.policy.static.decoder import StaticDecoder

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


def drive(decoder: RunningBatch, samples: list[SampleState]) -> None:
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


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_replayed_steps_match_a_plain_forward_pass(dtype: torch.dtype) -> None:
    model = make_model(dtype)
    decoder = choose(model, PolicySection(), slots=16, longest=256)
    assert isinstance(decoder, StaticDecoder)
    samples = make_samples(60)
    drive(decoder, samples)
    assert decoder._graphs._replays
    assert worst_difference(model, samples) < TOLERANCE[dtype]


def test_no_step_waits_for_the_device() -> None:
    model = make_model(torch.bfloat16)
    decoder = StaticDecoder(model, slots=16, longest=256)
    drive(decoder, make_samples(32))  # records the graphs
    samples = make_samples(16)
    decoder.add(samples, V1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        while decoder.running:
            decoder.step(V1)
            decoder.remove([sample for sample in decoder.running if sample.finish_reason])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_step_that_cannot_be_recorded_runs_as_usual(caplog) -> None:
    class Waiting(LlamaForCausalLM):
        """Reads a value of the device in every step."""

        def forward(self, **arguments):
            assert arguments["input_ids"].max().item() < VOCABULARY
            return super().forward(**arguments)

    model = Waiting(make_model(torch.float32).config).eval().to("cuda")
    samples = make_samples(20)
    drive(StaticDecoder(model, slots=16, longest=256), samples)
    assert worst_difference(model, samples) < 1e-5
    assert caplog.text.count("decoding steps are not recorded as CUDA graphs") == 1


@pytest.mark.parametrize("kind", ["growing", "static"])
def test_swap_uses_the_new_weights(tmp_path, kind: str) -> None:
    model, new = make_model(torch.float32), make_model(torch.float32, seed=1)
    save_file({name: tensor.cpu() for name, tensor in new.state_dict().items()}, tmp_path / "m.safetensors")
    decoder: RunningBatch = Decoder(model, slots=16)
    if kind == "static":
        decoder = StaticDecoder(model, slots=16, longest=256)
    before = make_samples(10)
    drive(decoder, before)
    old = copy.deepcopy(model)
    Replacement.read(tmp_path, model).apply(in_place=decoder.keeps_addresses)
    after = make_samples(10)
    drive(decoder, after)
    assert worst_difference(old, before) < 1e-5
    assert worst_difference(new, after) < 1e-5
    assert [sample.token_ids for sample in before] != [sample.token_ids for sample in after]


def test_cudnn_attention_is_disabled() -> None:
    torch_device("cuda")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
