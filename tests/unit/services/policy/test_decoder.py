"""The running batch compared with plain forward passes, for several architectures and random schedules."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import DynamicCache, PreTrainedModel

from fairlead.errors import ModelLoadError
from fairlead.types import FinishReason, SamplingParams, VersionSpan, WeightVersion
from services.policy.cache_check import check_cache
from services.policy.decoder import Decoder
from services.policy.replacement import Replacement
from services.policy.sample_state import SampleState
from services.policy.sampler import stream_key

VOCABULARY = 61
V1, V2 = WeightVersion(1, 0), WeightVersion(1, 1)

# Logits are then spread like those of a trained model; at twice the range, float32 itself is off by 1e-5.
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
_GPT2 |= {"initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 2}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _LLAMA),
    "llama-tied": ("Llama", _LLAMA | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", _LLAMA),
    "qwen3": ("Qwen3", _LLAMA | {"head_dim": 8}),
    "gpt2": ("GPT2", _GPT2),
    "gpt-neox": ("GPTNeoX", _LLAMA),
    "mistral-sliding": ("Mistral", _LLAMA | {"sliding_window": 6}),
    "gemma2-mixed": ("Gemma2", _LLAMA | {"head_dim": 8, "sliding_window": 6}),
    "bloom-alibi": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
}


def make_model(name: str, seed: int = 0) -> PreTrainedModel:
    prefix, settings_ = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = getattr(transformers, f"{prefix}Config")(**settings_)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


LLAMA = make_model("llama")


def make_samples(
    count: int, *, seed: int, longest: int = 14, limit: int = 20, **sampling: Any
) -> list[SampleState]:
    rng = random.Random(seed)
    return [
        SampleState(
            prompt=tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, longest))),
            sampling=SamplingParams(**sampling),
            key=stream_key(seed, index),
            stop_ids=frozenset([2]),
            limit=rng.randint(1, limit),
        )
        for index in range(count)
    ]


def drive(decoder: Decoder, samples: list[SampleState], *, seed: int) -> None:
    """Run all samples; add and remove them at random steps, some before they are finished."""
    rng = random.Random(seed)
    waiting = list(samples)
    while waiting or decoder.running:
        free = decoder.slots - len(decoder.running)
        if waiting and free and (not decoder.running or rng.random() < 0.4):
            joining = [waiting.pop(0) for _ in range(min(len(waiting), rng.randint(1, free)))]
            decoder.add(joining, V1)
        if rng.random() < 0.05 and decoder.running:
            decoder.remove([rng.choice(decoder.running)])
        decoder.remove([sample for sample in decoder.running if sample.finish_reason])
        if decoder.running:
            decoder.step(V1)
            decoder.remove([sample for sample in decoder.running if sample.finish_reason])


def worst_difference(model: PreTrainedModel, samples: list[SampleState]) -> float:
    """Return the largest difference from the log-probs of plain, unpadded forward passes."""
    worst = 0.0
    with torch.inference_mode():
        for sample in samples:
            ids = torch.tensor([[*sample.prompt, *sample.token_ids]])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(sample.prompt) - 1 : -1]
            logprobs = (logits.double() / (sample.sampling.temperature or 1)).log_softmax(-1)
            expected = logprobs.gather(-1, torch.tensor(sample.token_ids)[:, None])[:, 0]
            got = torch.tensor(sample.logprobs, dtype=torch.float64)
            worst = max(worst, (got - expected).abs().max().item())
    return worst


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_match_a_plain_forward_pass(name: str, temperature: float) -> None:
    model = make_model(name)
    check_cache(model, longest=512)
    samples = make_samples(24, seed=1, temperature=temperature)
    drive(Decoder(model, slots=7), samples, seed=1)
    assert all(sample.token_ids for sample in samples)
    assert worst_difference(model, samples) < 1e-5
    assert worst_difference(copy.deepcopy(model).double(), samples) < 1e-5


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([3, 40, 120]))
def test_logprobs_match_for_random_schedules(seed: int, slots: int, longest: int) -> None:
    """Prompts longer than the first block of the cache make it grow and move."""
    samples = make_samples(12, seed=seed, longest=longest)
    drive(Decoder(LLAMA, slots=slots), samples, seed=seed)
    assert worst_difference(LLAMA, samples) < 1e-5


def test_long_running_batch_reuses_columns() -> None:
    """The block must not keep growing when many sequences run one after another."""
    decoder = Decoder(LLAMA, slots=3)
    samples = make_samples(80, seed=5, longest=6, limit=16)
    drive(decoder, samples, seed=5)
    assert sum(len(sample.token_ids) for sample in samples) > 400
    assert decoder._cache.columns <= 128
    assert worst_difference(LLAMA, samples) < 1e-5


def test_bfloat16_is_close_to_float32() -> None:
    """bfloat16 has 8 bits of mantissa; log-probs of this model then differ by up to 0.25, 0.03 on average."""
    model = copy.deepcopy(LLAMA).to(torch.bfloat16)
    samples = make_samples(24, seed=2)
    drive(Decoder(model, slots=7), samples, seed=2)
    assert worst_difference(model, samples) < 0.25
    reference = []
    for sample in samples:
        ids = torch.tensor([[*sample.prompt, *sample.token_ids]])
        with torch.inference_mode():
            logits = LLAMA(input_ids=ids).logits[0, len(sample.prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(sample.token_ids)[:, None])[:, 0]
        reference.append((torch.tensor(sample.logprobs) - expected).abs())
    assert torch.cat(reference).mean() < 0.1


def test_same_seed_gives_same_tokens_in_any_batch() -> None:
    def tokens(slots: int, others: int, order: int) -> list[list[int]]:
        mine = make_samples(6, seed=3)
        mixed = mine + make_samples(others, seed=1_000 + others, temperature=1.3, top_k=9)
        random.Random(order).shuffle(mixed)
        decoder, waiting = Decoder(LLAMA, slots=slots), mixed
        while waiting or decoder.running:
            free = slots - len(decoder.running)
            if waiting and free:
                decoder.add(waiting[:free], V1)
                waiting = waiting[free:]
            else:
                decoder.step(V1)
            decoder.remove([sample for sample in decoder.running if sample.finish_reason])
        return [sample.token_ids for sample in mine]

    single = tokens(slots=1, others=0, order=0)
    assert len({tuple(ids) for ids in single}) > 1
    assert tokens(slots=4, others=9, order=1) == single
    assert tokens(slots=16, others=20, order=2) == single


def test_samples_of_one_prompt_differ_and_match_a_plain_forward_pass() -> None:
    prompt = (5, 6, 7, 8)
    samples = [
        SampleState(prompt if i % 3 else (9, 4), SamplingParams(), stream_key(0, i), frozenset(), limit=9)
        for i in range(11)
    ]
    decoder = Decoder(LLAMA, slots=11)
    decoder.add(samples, V1)
    while any(sample.finish_reason is None for sample in samples):
        decoder.step(V1)
    assert len({tuple(sample.token_ids) for sample in samples}) == 11
    assert worst_difference(LLAMA, samples) < 1e-5


def test_sample_ends_at_limit_or_stop_token() -> None:
    greedy = SampleState((5, 6), SamplingParams(temperature=0), 0, frozenset(), limit=6)
    decoder = Decoder(LLAMA, slots=1)

    def run(sample: SampleState) -> SampleState:
        decoder.add([sample], V1)
        while sample.finish_reason is None:
            decoder.step(V1)
        decoder.remove([sample])
        return sample

    assert run(greedy).finish_reason is FinishReason.LENGTH
    assert len(greedy.token_ids) == 6
    third = greedy.token_ids[2]
    first = greedy.token_ids.index(third)
    stopped = run(SampleState((5, 6), SamplingParams(temperature=0), 0, frozenset([third]), limit=6))
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.token_ids == greedy.token_ids[: first + 1]


def test_more_samples_than_slots_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 samples for 2 slots"):
        Decoder(LLAMA, slots=2).add(make_samples(3, seed=0), V1)


def test_swap_between_steps_has_exact_spans_and_logprobs(tmp_path) -> None:
    old, new = make_model("llama", seed=0), make_model("llama", seed=1)
    save_file(new.state_dict(), tmp_path / "model.safetensors")
    model = copy.deepcopy(old)
    samples = [
        SampleState(prompt, SamplingParams(), stream_key(4, i), frozenset(), limit=9)
        for i, prompt in enumerate([(5, 6, 7), (8,)])
    ]
    decoder = Decoder(model, slots=2)
    decoder.add(samples, V1)
    for _ in range(3):
        decoder.step(V1)
    Replacement.read(tmp_path, model).apply()
    for _ in range(5):
        decoder.step(V2)
    for sample in samples:
        assert sample.spans == (VersionSpan(V1, 0, 4), VersionSpan(V2, 4, 9))
        assert sample.completion().mixed_cache
        # By hand: old weights up to the token before the swap, then new weights with the old keys and values.
        ids = [*sample.prompt, *sample.token_ids]
        before = len(sample.prompt) + 3
        cache = DynamicCache(config=old.config)
        with torch.inference_mode():
            first = old(input_ids=torch.tensor([ids[:before]]), past_key_values=cache, use_cache=True).logits[
                0
            ]
            second = new(
                input_ids=torch.tensor([ids[before:-1]]), past_key_values=cache, use_cache=True
            ).logits[0]
        logits = torch.cat([first[len(sample.prompt) - 1 :], second])
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(sample.token_ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(sample.logprobs), expected, atol=1e-5)


def test_nan_weights_leave_no_nan_in_the_cache() -> None:
    model = copy.deepcopy(LLAMA)
    decoder = Decoder(model, slots=4)
    spoiled = make_samples(4, seed=7, limit=2)
    weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    good = weight.detach().clone()
    weight.data = torch.full_like(good, torch.nan)
    decoder.add(spoiled, V1)
    assert all(sample.logprobs[-1] != sample.logprobs[-1] for sample in spoiled)
    decoder.zero_nonfinite()
    decoder.remove(spoiled)
    weight.data = good
    samples = make_samples(9, seed=8)
    drive(decoder, samples, seed=8)
    assert worst_difference(model, samples) < 1e-5


def _mamba() -> PreTrainedModel:
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4
    )
    return transformers.MambaForCausalLM(config).eval()


def _bidirectional() -> PreTrainedModel:
    """Return a model that attends to later tokens, so that a cache cannot represent it."""
    config = transformers.LlamaConfig(**_LLAMA)
    config.is_causal = False
    model = transformers.LlamaForCausalLM(config).eval()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model


@pytest.mark.parametrize("build", [_mamba, _bidirectional])
def test_architecture_with_other_state_is_refused(build: Callable[[], PreTrainedModel]) -> None:
    with pytest.raises(ModelLoadError, match="cannot be decoded with a cache of only keys and values"):
        check_cache(build(), longest=512)
