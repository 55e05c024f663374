"""Decoding with tensors of fixed shape, eagerly on the CPU, compared with the other decoder."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from fairlead.config.serving import PolicySection
from fairlead.errors import ConfigError
from fairlead.types import SamplingParams, VersionSpan
from services.policy.decoder import Decoder
from services.policy.replacement import Replacement
from services.policy.running_batch import RunningBatch
from services.policy.sample_state import SampleState
from services.policy.sampler import device_uniforms, stream_key, uniforms
from services.policy.static.choice import choose
from services.policy.static.decoder import StaticDecoder
from services.policy.static.graphs import Graphs, Record, StepShape
from tests.replay import record
from tests.unit.services.policy.test_decoder import (
    LLAMA,
    V1,
    V2,
    drive,
    make_model,
    make_samples,
    worst_difference,
)


def test_numbers_of_the_device_are_those_of_the_host() -> None:
    draw = random.Random(0)
    keys = [draw.getrandbits(64) for _ in range(400)] + [0, 1, 2**63, 2**64 - 1]
    positions = [draw.randrange(1 << 20) for _ in keys]
    unsigned = np.array(keys, np.uint64)
    expected = uniforms(unsigned, np.array(positions, np.uint64))
    found = device_uniforms(torch.from_numpy(unsigned.view(np.int64)), torch.tensor(positions))
    assert found.tolist() == expected.tolist()


def run(decoder: RunningBatch, samples: list[SampleState]) -> list[SampleState]:
    """Run samples as the engine's thread does; they join when some slots are free, and leave at their end."""
    waiting = list(samples)

    def leave() -> None:
        decoder.remove([sample for sample in decoder.running if sample.finish_reason])

    while waiting or decoder.running:
        free = decoder.slots - len(decoder.running)
        if waiting and free >= min(2, len(waiting)):
            decoder.add(waiting[:free], V1)
            waiting = waiting[free:]
        leave()
        if decoder.running:
            decoder.step(V1)
            leave()
    return samples


@pytest.mark.parametrize("name", ["llama-tied", "qwen3", "gpt2", "gpt-neox", "mistral-sliding"])
def test_tokens_and_logprobs_are_those_of_the_other_decoder(name: str) -> None:
    """Steps are replayed. Prompts longer than the first columns make the cache grow; greedy, hot and cut rows
    run together.
    """
    model = make_model(name)
    kinds = [{}, {"temperature": 0.7}, {"temperature": 0}, {"top_k": 9, "top_p": 0.9}]

    def samples() -> list[SampleState]:
        found = [s for i, kind in enumerate(kinds) for s in make_samples(6, seed=i, longest=150, **kind)]
        # Several answers to a prompt share its prefill.
        for sample in found[::5]:
            sample.prompt = found[3].prompt
        return found

    expected = run(Decoder(model, slots=7), samples())
    found = run(StaticDecoder(model, slots=7, longest=512, recorder=lambda: record), samples())
    assert [sample.token_ids for sample in found] == [sample.token_ids for sample in expected]
    assert [sample.finish_reason for sample in found] == [sample.finish_reason for sample in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_step_is_run_then_recorded_then_replayed() -> None:
    events: list[str] = []
    one, other = StepShape(4, 128, is_cut=False), StepShape(8, 128, is_cut=False)

    def recorded(step: Callable[[], None]) -> Callable[[], None]:
        events.append("record")
        return lambda: events.append("replay")

    def recorder() -> Record:
        events.append("recorder")
        return recorded

    graphs = Graphs(lambda shape: events.append(f"run {shape.rows}"), recorder)
    for shape in (one, one, other, one, other):
        graphs.run(shape)
    assert events == ["recorder", "run 4", "record", "replay", "run 8", "replay", "record", "replay"]
    events.clear()
    graphs.clear()
    graphs.run(one)
    assert events == ["recorder", "run 4"]


def test_step_that_cannot_be_recorded_runs_as_usual_and_is_logged_once(caplog) -> None:
    class Waiting(LlamaForCausalLM):
        """Reads a value of the device in every step."""

        def forward(self, **arguments):
            assert arguments["input_ids"].max().item() < 61
            return super().forward(**arguments)

    torch.manual_seed(0)
    model = Waiting(LLAMA.config).eval()
    samples = run(
        StaticDecoder(model, slots=3, longest=512, recorder=lambda: record), make_samples(9, seed=2)
    )
    assert worst_difference(model, samples) < 1e-5
    (line,) = [each.getMessage() for each in caplog.records if each.name == "services.policy.static.graphs"]
    assert line.startswith("decoding steps are not recorded as CUDA graphs: ")


def test_architecture_that_a_step_cannot_compute_has_the_growing_cache() -> None:
    model = make_model("gemma2-mixed")
    assert isinstance(choose(model, PolicySection(), slots=2, longest=512), Decoder)
    with pytest.raises(ConfigError, match=r"policy.static_cache: got 'always for Gemma2.*softcap"):
        choose(model, PolicySection(static_cache="always"), slots=2, longest=512)
    assert isinstance(choose(LLAMA, PolicySection(static_cache="always"), slots=2, longest=9), StaticDecoder)


def test_samples_that_are_removed_early_do_not_disturb_the_others() -> None:
    samples = make_samples(24, seed=11, longest=40)
    drive(StaticDecoder(LLAMA, slots=6, longest=512), samples, seed=11)
    assert worst_difference(LLAMA, [sample for sample in samples if sample.token_ids]) < 1e-5


def test_each_call_returns_the_samples_that_got_a_token() -> None:
    decoder = StaticDecoder(LLAMA, slots=4, longest=512)
    samples = [
        SampleState((5, 6), SamplingParams(), stream_key(0, i), frozenset(), limit=3) for i in range(3)
    ]
    assert decoder.add(samples[:2], V1) == ()
    # The first step is running while the tokens of the prefill are read.
    assert decoder.step(V1) == samples[:2]
    assert [len(sample.token_ids) for sample in samples] == [1, 1, 0]
    decoder.add(samples[2:], V1)
    assert decoder.step(V1) == samples
    # All tokens of the first two are started: the device computes none that can only be dropped.
    assert decoder.step(V1) == samples
    assert [len(sample.token_ids) for sample in samples] == [3, 3, 2]
    decoder.remove(samples[:2])
    assert decoder.step(V1) == samples[2:]
    assert decoder.step(V1) == []
    assert [len(sample.token_ids) for sample in samples] == [3, 3, 3]


def test_longest_sequence_fills_the_cache() -> None:
    """The step that runs while the last token is read has no column of its own."""
    longest = 37
    samples = [
        SampleState(
            tuple(range(3, 3 + length)), SamplingParams(), stream_key(1, length), frozenset(), limit=limit
        )
        for length, limit in ((30, 7), (1, 36), (36, 1), (8, 3))
    ]
    with pytest.raises(ValueError, match="a sample of up to 37 tokens; at most 36 are allowed"):
        StaticDecoder(LLAMA, slots=3, longest=longest - 1).add(samples[:1], V1)
    found = run(StaticDecoder(LLAMA, slots=3, longest=longest), samples)
    assert [len(sample.token_ids) for sample in found] == [7, 36, 1, 3]
    assert worst_difference(LLAMA, found) < 1e-5


def test_swap_in_place_keeps_addresses_and_has_exact_spans(tmp_path) -> None:
    old, new = make_model("llama-tied", seed=0), make_model("llama-tied", seed=1)
    tensors = {name: tensor for name, tensor in new.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, tmp_path / "model.safetensors")
    model = copy.deepcopy(old)
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    samples = [
        SampleState(prompt, SamplingParams(), stream_key(4, i), frozenset(), limit=9)
        for i, prompt in enumerate([(5, 6, 7), (8,)])
    ]
    plain = [SampleState(each.prompt, each.sampling, each.key, frozenset(), limit=9) for each in samples]
    decoder: RunningBatch
    for decoder, model_, group in (
        (StaticDecoder(model, slots=2, longest=64, recorder=lambda: record), model, samples),
        (Decoder(other := copy.deepcopy(old), slots=2), other, plain),
    ):
        decoder.add(group, V1)
        for _ in range(3):
            decoder.step(V1)
        # A step is running: its token is of the old weights.
        Replacement.read(tmp_path, model_).apply(in_place=decoder.keeps_addresses)
        while any(sample.finish_reason is None for sample in group):
            decoder.step(V2)
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
    for sample, other_ in zip(samples, plain, strict=True):
        assert sample.spans == other_.spans == (VersionSpan(V1, 0, 4), VersionSpan(V2, 4, 9))
        assert sample.token_ids == other_.token_ids
        assert sample.logprobs == pytest.approx(other_.logprobs, abs=1e-5)


def test_nan_weights_leave_no_nan_in_the_cache() -> None:
    model = copy.deepcopy(LLAMA)
    decoder = StaticDecoder(model, slots=4, longest=512)
    spoiled = make_samples(4, seed=7, limit=4)
    for sample in spoiled:
        sample.limit = 4
    weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    good = weight.detach().clone()
    weight.data = torch.full_like(good, torch.nan)
    decoder.add(spoiled, V1)
    decoder.step(V1)
    assert all(sample.logprobs[-1] != sample.logprobs[-1] for sample in spoiled)
    decoder.remove(spoiled)
    decoder.zero_nonfinite()
    weight.data = good
    samples = run(decoder, make_samples(9, seed=8))
    assert worst_difference(LLAMA, samples) < 1e-5
