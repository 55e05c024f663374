"""Decoding with our cache, scoring in segments and packed training: equal to the model's own forward pass, or
refused.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from fairlead.config.serving import RewardSection
from fairlead.errors import ConfigError, ModelLoadError
from fairlead.nn.ensemble import RewardEnsemble
from fairlead.nn.heads import ScalarHead
from fairlead.nn.loading import max_sequence_tokens
from fairlead.nn.reward_model import RewardModel
from fairlead.nn.unembedding import check_unembedding
from fairlead.types import SamplingParams, WeightVersion
from services.policy.cache_check import check_cache
from services.policy.decoder import Decoder
from services.policy.sample_state import SampleState
from services.policy.sampler import stream_key
from services.reward.compute import forward
from services.reward.item_reader import EncodedItem
from trainer.sequences import TokenSequence
from trainer.sft import packing

Ids = tuple[int, ...]

VOCABULARY = 61
CONTEXT = 256
SPAN = 24
"""Tokens that attention reaches where it is limited: more than a short check at load would notice."""

_LAYERS = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
_LAYERS |= {"initializer_range": 0.15}
_GROUPED = _LAYERS | {"num_key_value_heads": 2}
_SLIDING = _GROUPED | {"sliding_window": SPAN}
_GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": CONTEXT, "initializer_range": 0.15}
_BLOOM = {"hidden_size": 32, "n_layer": 4, "n_head": 4, "initializer_range": 0.15}
_LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 128}
_LONG |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
_LLAMA4 = _GROUPED | _MOE | {"head_dim": 8, "intermediate_size_mlp": 48, "attention_chunk_size": SPAN}
_NEO = {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "window_size": SPAN, "initializer_range": 0.15}
_OSS = _SLIDING | _MOE | {"head_dim": 8}
_OPT = _LAYERS | {"word_embed_proj_dim": 32, "ffn_dim": 48, "init_std": 0.15}

MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    # Class, settings, and which of the ways are equal: d(ecoding), s(egments), p(acking).
    "llama": ("Llama", _GROUPED, "dsp"),
    "qwen2": ("Qwen2", _GROUPED, "dsp"),
    "gpt2": ("GPT2", _GPT2, "dsp"),
    "gpt-neox": ("GPTNeoX", _LAYERS, "dsp"),
    "dynamic positions": (
        "Llama",
        _GROUPED | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        "dsp",
    ),
    "phi3 with two sets of positions": (
        "Phi3",
        _GROUPED
        | {"rope_parameters": _LONG, "original_max_position_embeddings": 128, "sliding_window": None},
        "dsp",
    ),
    "mistral with a sliding window": ("Mistral", _SLIDING, "dp"),
    "mixtral with a sliding window": ("Mixtral", _SLIDING | _MOE, "dp"),
    "gemma3 with sliding layers": ("Gemma3Text", _SLIDING | {"head_dim": 8}, "dp"),
    "gemma2 with soft caps": ("Gemma2", _SLIDING | {"head_dim": 8}, "d"),
    "cohere with scaled logits": ("Cohere", _GROUPED, "ds"),
    "gpt-oss with sinks": ("GptOss", _OSS, "d"),
    "llama4 with chunks": ("Llama4Text", _LLAMA4, "d"),
    "gpt-neo with local layers": ("GPTNeo", _NEO | {"attention_types": [[["global", "local"], 2]]}, "dp"),
    "opt": ("OPT", _OPT, "ds"),
    "bloom with alibi": ("Bloom", _BLOOM, "d"),
    "falcon with alibi": ("Falcon", _LAYERS | {"alibi": True}, "d"),
    "mpt with alibi": ("Mpt", {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": CONTEXT}, "d"),
    "recurrent gemma": ("RecurrentGemma", _GROUPED | {"attention_window_size": SPAN}, ""),
    "mamba": ("Mamba", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}, ""),
}


def build(name: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    kind, settings, _ = MODELS[name]
    ends = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    own = (
        {}
        if kind in ("GPT2", "Bloom", "Mpt", "Mamba", "RecurrentGemma")
        else {"max_position_embeddings": CONTEXT}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**(own | ends | settings))
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def ids(rng: random.Random, length: int) -> Ids:
    return tuple(rng.randrange(3, VOCABULARY) for _ in range(length))


@torch.inference_mode()
def own_logprobs(model: PreTrainedModel, prompt: Ids, response: Ids) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
    table = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
    return table.gather(-1, torch.tensor(response)[:, None])[:, 0]


def decoding(model: PreTrainedModel) -> float:
    check_cache(model, longest=CONTEXT)
    rng = random.Random(1)
    samples = [
        SampleState(ids(rng, length), SamplingParams(), stream_key(0, length), frozenset(), limit=12)
        for length in (40, 3, 31, 9)
    ]
    decoder, waiting = Decoder(model, slots=3), list(samples)
    while waiting or decoder.running:
        if waiting and len(decoder.running) < 3:
            decoder.add([waiting.pop()], WeightVersion(1, 0))
        decoder.step(WeightVersion(1, 0))
        decoder.remove([sample for sample in decoder.running if sample.finish_reason])
    return max(
        float(
            (torch.tensor(one.logprobs) - own_logprobs(model, one.prompt, tuple(one.token_ids))).abs().max()
        )
        for one in samples
    )


def segment_forward(model: PreTrainedModel) -> tuple[forward.Forward, RewardModel]:
    body = model.base_model
    embedding = model.get_input_embeddings()
    assert isinstance(body, PreTrainedModel)
    assert isinstance(embedding, torch.nn.Embedding)
    reward = RewardModel(body, ScalarHead(embedding.embedding_dim), model)
    section = RewardSection(attention="segments", device="cpu")
    return forward.choose(RewardEnsemble((reward,)), section, longest=CONTEXT), reward


def segments(model: PreTrainedModel) -> float:
    ours, reward = segment_forward(model)
    rng = random.Random(2)
    stem = ids(rng, 45)
    batch = [EncodedItem(stem, ids(rng, length)) for length in (1, 20, 50)] + [ids(rng, 7), ids(rng, 60)]
    with torch.inference_mode():
        last = [reward.body(torch.tensor([one]))[0][0, -1] for one in batch]
        expected = reward.head(torch.stack(last))
        found = [ours.prepare(batch)() for _ in range(2)]
    return max(float((one - expected).abs().max()) for one in found)


def packed(model: PreTrainedModel) -> float:
    check_unembedding(model)
    packing.check(model, longest=CONTEXT)
    rng = random.Random(3)
    sequences = [TokenSequence(ids(rng, length), 2) for length in (40, 5, 33, 9)]
    with torch.inference_mode():
        found = packing.row_logprobs(model, [sequences, sequences[:1]])
    expected = [
        own_logprobs(model, one.token_ids[:2], one.token_ids[2:]) for one in (*sequences, sequences[0])
    ]
    return float((found - torch.cat(expected)).abs().max())


WAYS: dict[str, Callable[[PreTrainedModel], float]] = {"d": decoding, "s": segments, "p": packed}


@pytest.mark.parametrize("name", MODELS)
def test_each_way_equals_the_own_forward_pass_or_is_refused(name: str):
    model, equal = build(name), ""
    for way, difference in WAYS.items():
        try:
            assert difference(model) < 1e-4, way
            equal += way
        except (ModelLoadError, ConfigError) as error:
            assert type(model).__name__ in str(error)
            assert "(" in str(error), "the reason"
    assert equal == MODELS[name][2]


def refused(check: Callable[[], object]) -> bool:
    try:
        check()
    except (ModelLoadError, ConfigError):
        return True
    return False


@pytest.mark.parametrize("name", ["llama", "mistral with a sliding window", "bloom with alibi", "opt"])
def test_checks_in_bfloat16_have_the_same_result(name: str):
    model = build(name, dtype=torch.bfloat16)
    checks: dict[str, Callable[[], object]] = {
        "d": lambda: check_cache(model, longest=CONTEXT),
        "s": lambda: segment_forward(model),
        "p": lambda: packing.check(model, longest=CONTEXT),
    }
    assert "".join(way for way, check in checks.items() if not refused(check)) == MODELS[name][2]


def test_new_models_with_small_weights_are_checked_as_strictly():
    """What a way does wrong is small in the values of such a model, and grows when it is trained."""
    for name in ("bloom with alibi", "gemma2 with soft caps"):
        model = build(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.1 if parameter.dim() > 1 else 1.0)
        with pytest.raises((ConfigError, ModelLoadError)):
            packed(model)


@pytest.mark.parametrize(
    ("name", "limit"), [("llama", 256), ("phi3 with two sets of positions", 128), ("llama4 with chunks", 99)]
)
def test_sequences_are_limited_to_lengths_of_unchanging_positions(
    name: str, limit: int, caplog: pytest.LogCaptureFixture
):
    model = build(name)
    if hasattr(model.config, "floor_scale"):
        model.config.floor_scale = 100
    with caplog.at_level(logging.WARNING):
        assert max_sequence_tokens(model, 0) == limit
        assert max_sequence_tokens(model, 250) == min(limit, 250)
        assert max_sequence_tokens(model, 50) == 50
    assert ("computes longer ones by other positions" in caplog.text) == (limit < 256)
