"""The reference scorer agrees with a float64 log-softmax of whole logits."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from fairlead.config.serving import BatchingSection, ReferenceSection
from fairlead.errors import InvalidInput, ModelLoadError
from fairlead.nn import logprobs
from fairlead.types import TokenPair
from services.reference import shared_prompts
from services.reference.model import Lookup
from services.reference.scorer import ReferenceScorer
from tests.tiny import tiny_causal_lm, tiny_tokenizer

SECTION = ReferenceSection(device="cpu", batching=BatchingSection(max_items=4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_causal_lm(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def scorer(folder):
    return ReferenceScorer(str(folder), SECTION)


@pytest.fixture(scope="module")
def lookups():
    rng = random.Random(4)

    def ids(count):
        return tuple(rng.randrange(60) for _ in range(count))

    shapes = [(1, 1), (1, 127), (127, 1), (3, 9), (30, 60), (5, 5), (64, 64), (2, 40)]
    return [
        Lookup(TokenPair(ids(p), ids(r)), temperature) for p, r in shapes for temperature in (0.7, 1.0, 3.0)
    ]


@pytest.fixture(scope="module")
def oracle(folder, lookups):
    return float64(folder, lookups)


def float64(folder, lookups):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    found = []
    for lookup in lookups:
        prompt, response = lookup.pair.prompt_token_ids, lookup.pair.response_token_ids
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([(*prompt, *response)])).logits[0] / lookup.temperature
        table = logits.log_softmax(-1)
        found.append([float(table[len(prompt) - 1 + i, token]) for i, token in enumerate(response)])
    return found


def assert_same(found, expected):
    for row, other in zip(found, expected, strict=True):
        assert len(row) == len(other)
        assert max(abs(a - b) for a, b in zip(row, other, strict=True)) <= 1e-5


@pytest.mark.parametrize("seed", range(6))
def test_log_probs_match_float64_in_any_batch_and_at_mixed_temperatures(scorer, lookups, oracle, seed):
    rng = random.Random(seed)
    order = list(range(len(lookups)))
    rng.shuffle(order)
    found = {}
    while order:
        size = rng.randint(1, len(order))
        batch, order = order[:size], order[size:]
        found.update(zip(batch, scorer.logprobs([lookups[index] for index in batch]), strict=True))
    assert_same([found[index] for index in range(len(lookups))], oracle)


def test_groups_share_their_prompts_and_match_float64(scorer, folder):
    """Several answers to each of some prompts, of one token up to the longest, in one batch."""
    draw = random.Random(7)

    def ids(count):
        return tuple(draw.randrange(60) for _ in range(count))

    pairs = []
    for size, longest in ((3, 10), (40, 20), (90, 38), (1, 60)):
        prompt = ids(size)
        pairs += [TokenPair(prompt, ids(length)) for length in (longest, 1, draw.randint(2, longest), 3)]
    draw.shuffle(pairs)
    computed = []
    body = scorer.model._body
    hook = body.register_forward_pre_hook(
        lambda module, arguments, options: computed.append(options["input_ids"].numel()), with_kwargs=True
    )
    try:
        found = scorer.logprobs([Lookup(pair, 0.7) for pair in pairs])
    finally:
        hook.remove()
    assert_same(found, float64(folder, [Lookup(pair, 0.7) for pair in pairs]))
    assert len(computed) == 2
    assert sum(computed) < len(pairs) * max(len(p.prompt_token_ids + p.response_token_ids) for p in pairs)


@pytest.mark.parametrize(
    ("size", "answer", "count", "shares"), [(50, 10, 4, True), (4, 60, 4, False), (50, 10, 1, False)]
)
def test_prompts_are_shared_where_that_saves_enough(scorer, monkeypatch, size, answer, count, shares):
    pairs = [TokenPair((1,) * size, (2,) * answer)] * count
    assert scorer.model._shared.is_worthwhile(pairs) is shares
    monkeypatch.setattr(shared_prompts, "CACHE_BYTES", 1 << 10)
    assert not scorer.model._shared.is_worthwhile(pairs)


def test_only_response_positions_are_unembedded_in_chunks(scorer, lookups, oracle, monkeypatch):
    rows = []
    layer = scorer.model._unembedding
    hook = layer.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[0]))
    monkeypatch.setattr(logprobs.hidden_logprobs, "__kwdefaults__", {"chunk_rows": 50})
    try:
        assert_same(scorer.logprobs(lookups), oracle)
    finally:
        hook.remove()
    assert sum(rows) == sum(len(lookup.pair.response_token_ids) for lookup in lookups)
    assert max(rows) <= 50


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), 0.0, -1.0, 101.0])
def test_invalid_temperature_is_refused(scorer, temperature):
    with pytest.raises(InvalidInput) as refused:
        scorer.check([TokenPair((1,), (2,))], temperature)
    assert str(refused.value) == (
        f"temperature: got {temperature!r}, allowed: a finite number greater than 0, at most 100"
    )


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "sequences: got 0, allowed: from 1 to 4"),
        ([TokenPair((1,), (2,))] * 5, "sequences: got 5, allowed: from 1 to 4"),
        ([TokenPair((), (2,))], "sequences.prompt_token_ids[0]: got 'no token ids', allowed: at least one"),
        ([TokenPair((1,), ())], "sequences.response_token_ids[0]: got 'no token ids', allowed: at least one"),
        (
            [TokenPair((1,), (2,)), TokenPair((1,), (60,))],
            "sequences.response_token_ids[1]: got '60 at position 0', allowed: ids from 0 to 59",
        ),
        (
            [TokenPair((1,) * 100, (2,) * 29)],
            "sequences[0]: got '129 tokens', allowed: at most 128 tokens, prompt and response together",
        ),
    ],
)
def test_invalid_sequences_are_refused(scorer, pairs, message):
    with pytest.raises(InvalidInput) as refused:
        scorer.check(pairs, 1.0)
    assert str(refused.value) == message


def test_info_describes_the_model(scorer, folder):
    model = scorer.info.model
    assert (model.model_id, model.vocabulary_size, model.max_sequence_tokens) == (str(folder), 60, 128)


def test_architecture_that_changes_its_logits_is_refused(tmp_path):
    config = Gemma2Config(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, final_logit_softcapping=0.5,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="changes its logits after the output layer"):
        ReferenceScorer(str(tmp_path), SECTION)
