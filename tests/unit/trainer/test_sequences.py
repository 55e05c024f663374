"""Padding, packing, and the trainer's log-probs against a naive forward pass in float64."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairlead.config.base import ComputeSection
from fairlead.errors import ModelLoadError
from fairlead.nn.loading import load_causal_lm
from fairlead.nn.unembedding import check_unembedding
from tests.tiny import VOCABULARY_SIZE, tiny_causal_lm
from trainer.sequences import (
    TokenSequence,
    pack,
    pad,
    response_logprobs,
    response_logprobs_and_entropies,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_causal_lm(str(tiny_causal_lm(tmp_path_factory.mktemp("lm"))), ComputeSection(device="cpu"))


def some_sequences(count: int = 9) -> list[TokenSequence]:
    draw = random.Random(1)
    found = []
    for index in range(count):
        prompt, response = 1 + index % 4, 1 + (index * 5) % 7
        ids = [draw.randrange(4, VOCABULARY_SIZE) for _ in range(prompt + response)]
        ids[-1] = 2  # the end token
        found.append(TokenSequence(tuple(ids), prompt))
    return found


@torch.no_grad()
def naive_logprobs(model, sequence: TokenSequence, temperature: float) -> list[float]:
    double = model.double()
    try:
        logits = double(torch.tensor([sequence.token_ids])).logits[0] / temperature
    finally:
        model.float()
    table = logits.log_softmax(-1)
    places = range(sequence.prompt_length, len(sequence.token_ids))
    return [float(table[t - 1, sequence.token_ids[t]]) for t in places]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_padded_logprobs_agree_with_float64(model, temperature):
    sequences = some_sequences()
    logprobs, entropies = response_logprobs_and_entropies(
        model, pad(sequences, torch.device("cpu")), temperature=temperature
    )
    expected = [value for sequence in sequences for value in naive_logprobs(model, sequence, temperature)]
    assert logprobs.tolist() == pytest.approx(expected, abs=1e-5)
    assert len(entropies) == len(expected)
    assert ((entropies > 0) & (entropies < torch.tensor(float(VOCABULARY_SIZE)).log() + 1e-5)).all()


def test_left_padding_with_position_ids_gives_the_same(model):
    """The trainer computes what a policy engine records that pads its prompts on the left."""
    sequences = some_sequences()
    ours = response_logprobs(model, pad(sequences, torch.device("cpu")), temperature=1.0)
    width = max(len(sequence.token_ids) for sequence in sequences)
    found = []
    for sequence in sequences:
        gap = width - len(sequence.token_ids)
        tokens = torch.tensor([[0] * gap + list(sequence.token_ids)])
        mask = torch.tensor([[0] * gap + [1] * len(sequence.token_ids)])
        with torch.no_grad():
            logits = model(
                tokens, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
            ).logits[0]
        table = logits.log_softmax(-1)
        found += [float(table[t - 1, tokens[0, t]]) for t in range(gap + sequence.prompt_length, width)]
    assert ours.tolist() == pytest.approx(found, abs=1e-5)


def test_end_token_counts_even_if_it_is_the_padding_token(tmp_path):
    """Padding is recognised by length: the values do not depend on the pad id."""
    plain = load_causal_lm(str(tiny_causal_lm(tmp_path / "a")), ComputeSection(device="cpu"))
    shared = load_causal_lm(
        str(tiny_causal_lm(tmp_path / "b", pad_is_eos=True)), ComputeSection(device="cpu")
    )
    shared.load_state_dict(plain.state_dict())
    batch = pad(some_sequences(), torch.device("cpu"))
    assert torch.equal(
        response_logprobs(plain, batch, temperature=1.0),
        response_logprobs(shared, batch, temperature=1.0),
    )
    assert (batch.targets_N == 2).sum() == 9


def test_dropout_is_off(tmp_path):
    path = tiny_causal_lm(tmp_path, attention_dropout=0.5)
    model = load_causal_lm(str(path), ComputeSection(device="cpu"))
    batch = pad(some_sequences(), torch.device("cpu"))
    first = response_logprobs(model, batch, temperature=1.0)
    assert torch.equal(first, response_logprobs(model, batch, temperature=1.0))


@given(st.lists(st.integers(1, 40), max_size=9), st.integers(1, 120), st.integers(0, 50))
def test_pack_is_the_cheapest_split_of_the_sorted_lengths(lengths, budget, overhead):
    """Against every split of the sorted lengths between different ones, each part filled up to the budget."""
    descending = sorted(lengths, reverse=True)

    def cost(parts) -> int:
        pieces = [
            part[first : first + rows]
            for part in parts
            for rows in [max(1, budget // part[0])]
            for first in range(0, len(part), rows)
        ]
        return sum(part[0] * len(part) for part in parts) + overhead * len(pieces)

    places = [place for place in range(1, len(lengths)) if descending[place] != descending[place - 1]]
    splits = []
    for chosen in itertools.product([False, True], repeat=len(places)):
        cuts = [0, *(place for place, cut in zip(places, chosen, strict=True) if cut), len(lengths)]
        splits.append([descending[a:b] for a, b in itertools.pairwise(cuts) if a < b])
    groups = [[lengths[i] for i in group] for group in pack(lengths, max_tokens=budget, overhead=overhead)]
    found = sum(len(group) * max(group) for group in groups) + overhead * len(groups)
    assert found <= min(map(cost, splits))


@given(st.lists(st.integers(1, 400), max_size=200), st.integers(1, 120), st.integers(0, 500))
def test_pack_keeps_every_sequence_and_the_budget(lengths, budget, overhead):
    groups = list(pack(lengths, max_tokens=budget, overhead=overhead))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        padded = len(group) * max(lengths[index] for index in group)
        assert padded <= budget or len(group) == 1


def test_architecture_that_changes_its_logits_is_rejected(model, tmp_path):
    check_unembedding(model)
    bent = load_causal_lm(str(tiny_causal_lm(tmp_path)), ComputeSection(device="cpu"))
    bent.register_forward_hook(
        lambda _module, _inputs, output: setattr(output, "logits", output.logits.tanh()) or output
    )
    with pytest.raises(ModelLoadError, match="changes its logits after the output layer"):
        check_unembedding(bent)
