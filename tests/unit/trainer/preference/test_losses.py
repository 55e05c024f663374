"""The losses of the preference stage against formulas written out for each pair, in float64."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from fairlead.config import load
from fairlead.config.base import ComputeSection
from fairlead.config.preference import PreferenceSection
from fairlead.data.comparisons import Preference, RankedResponses
from fairlead.errors import ConfigError
from fairlead.nn.loading import load_causal_lm
from tests.tiny import tiny_causal_lm, tiny_tokenizer
from trainer import rankings
from trainer.distributed.sharding import Root
from trainer.preference import losses
from trainer.preference.data import Example
from trainer.preference.objective import Policy, compared
from trainer.sequences import TokenSequence

PAIRED = (
    {"beta": 0.3, "label_smoothing": 0.1},
    {"beta": 0.3, "target_margin": 0.7, "sft_coefficient": 0.5},
    {"loss": "ipo", "beta": 0.4},
    {"loss": "length_normalised", "beta": 2.0},
    {"loss": "simpo", "beta": 2.0, "target_margin": 0.5, "label_smoothing": 0.2},
    {"rankings": "plackett_luce", "sft_coefficient": 0.5},
)
RANKED = rankings.encode(
    [
        RankedResponses("w1 w2", ("w3", "w4 w5", "w6", "w7 w8 w9"), (-1.0, -2.0, -2.0, -4.0)),
        Preference("w7 w8", "w20", "w21 w22"),
        RankedResponses("w5", ("w3 w3", "w4", "w9"), (0.50, 0.56, 0.70), tie_margin=0.1),
    ],
    tiny_tokenizer(),
    max_tokens=100,
).rankings
EXAMPLES = [
    Example(
        tuple(TokenSequence(ids, one.prompt_length) for ids in one.sequences), one.pairs, True, one.prompt
    )
    for one in RANKED
]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def naive(policy, reference, tokens, pairs, **settings) -> float:
    """The loss of one ranking, pair by pair."""
    loss = settings.get("loss", "sigmoid")
    beta, smoothing, margin = (
        settings.get("beta", 0.1),
        settings.get("label_smoothing", 0.0),
        settings.get("target_margin", 0.0),
    )
    deltas = [p - (0.0 if loss == "simpo" else r) for p, r in zip(policy, reference, strict=True)]
    if loss != "sigmoid":
        deltas = [delta / count for delta, count in zip(deltas, tokens, strict=True)]
    terms = []
    for winner, loser in pairs:
        gap = deltas[winner] - deltas[loser]
        if loss == "ipo":
            terms.append((gap - 0.5 / beta) ** 2)
        else:
            z = beta * gap - margin
            terms.append(-(1 - smoothing) * log_sigmoid(z) - smoothing * log_sigmoid(-z))
    if settings.get("rankings") == "plackett_luce":
        terms = []
        for first in {winner for winner, _ in pairs}:
            rivals = [first, *(loser for winner, loser in pairs if winner == first)]
            terms.append(-math.log(1 / sum(math.exp(beta * (deltas[i] - deltas[first])) for i in rivals)))
    best = [i for i in range(len(policy)) if all(loser != i for _, loser in pairs)]
    demonstrated = -sum(policy[i] / tokens[i] for i in best) / len(best)
    return sum(terms) / len(terms) + settings.get("sft_coefficient", 0.0) * demonstrated


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Root:
    path = tiny_causal_lm(tmp_path_factory.mktemp("policy"))
    return Root(load_causal_lm(str(path), ComputeSection(device="cpu")).double())


def policy_of(root: Root, **settings: object) -> Policy:
    return Policy(root=root, section=PreferenceSection(**settings), dtype=torch.float32)


def test_losses_and_gradients_match_naive_formulas(root):
    flat = [sequence for example in EXAMPLES for sequence in example.sequences]
    values = policy_of(root).logprobs(flat)
    for number, ids in enumerate(flat):
        logits = root.model(torch.tensor([ids.token_ids])).logits[0].log_softmax(-1).detach()
        own = sum(
            float(logits[t - 1, ids.token_ids[t]]) for t in range(ids.prompt_length, len(ids.token_ids))
        )
        assert float(values[number]) == pytest.approx(own, abs=1e-9)
    reference = values + torch.linspace(-4, 4, len(values)).double()
    members = compared(EXAMPLES, reference)
    for settings in PAIRED:
        parts = torch.split(values, [len(example.sequences) for example in EXAMPLES])
        expected = [
            naive(
                own.tolist(), one.reference_S.tolist(), one.num_tokens.tolist(), one.example.pairs, **settings
            )
            for one, own in zip(members, parts, strict=True)
        ]
        gradients = []
        for budget in (1, 1_000):
            root.model.zero_grad()
            found = 0.0
            for loss, figures in policy_of(root, max_micro_batch_tokens=budget, **settings).parts(members):
                loss.backward()
                found += float(loss.detach())
                assert set(figures) == {"accuracy", "margin", "chosen_change", "rejected_change"}
            assert found == pytest.approx(sum(expected) / len(expected), abs=1e-9), settings
            gradients.append(root.model.model.embed_tokens.weight.grad.clone())
        assert torch.allclose(*gradients, rtol=0, atol=1e-12)


def test_plackett_luce_is_the_likelihood_of_the_ranking():
    random.seed(0)
    rewards = [random.gauss(0, 2) for _ in range(4)]
    pairs = list(itertools.combinations(range(4), 2))
    likelihood = math.prod(
        math.exp(rewards[i]) / sum(math.exp(value) for value in rewards[i:]) for i in range(3)
    )
    found = losses.plackett_luce(torch.tensor(rewards, dtype=torch.float64), pairs)
    assert float(found) == pytest.approx(-math.log(likelihood) / 3)
    two = torch.tensor(rewards[:2], dtype=torch.float64)
    assert float(losses.plackett_luce(two, [(1, 0)])) == pytest.approx(-log_sigmoid(rewards[1] - rewards[0]))
    extreme = losses.pair_losses(torch.tensor([-1e4, 1e4]), section=PreferenceSection(beta=1.0))
    assert extreme.tolist() == [1e4, 0.0]


def test_kto_matches_its_formula(root):
    section = PreferenceSection(loss="kto", beta=0.2, desirable_weight=1.5, undesirable_weight=0.5)
    change, good, baseline = [3.0, -2.0, 0.5, -900.0], [True, False, False, True], 0.7
    expected = [
        (1.5 if up else 0.5) * (1 - math.exp(log_sigmoid(0.2 * (value - baseline) * (1 if up else -1))))
        for value, up in zip(change, good, strict=True)
    ]
    found = losses.kto_losses(
        torch.tensor(change).double(),
        torch.tensor(good),
        torch.tensor(baseline, dtype=torch.float64),
        section=section,
    )
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert losses.kto_baseline(-3.0) == 0.0
    # The baseline is the mean over the step's prompts with answers to other prompts, in any micro-batches.
    thumbs = [
        Example((TokenSequence((1, 5, 6, 2), 2), TokenSequence((1, 5, 9, 9, 2), 2)), (), True, "w1"),
        Example((TokenSequence((1, 7, 9, 9, 2), 2), TokenSequence((1, 7, 6, 2), 2)), (), False, "w3"),
    ]
    flat = [sequence for example in thumbs for sequence in example.sequences]
    values = policy_of(root).logprobs(flat)
    reference = values - torch.tensor([1.0, 0.5, -2.0, 1.5], dtype=torch.float64)
    expected = losses.kto_losses(
        torch.tensor([1.0, -2.0]), torch.tensor([True, False]), torch.tensor(1.0), section=section
    ).mean()
    for budget in (1, 1_000):
        settings = section.model_dump() | {"max_micro_batch_tokens": budget}
        parts = list(policy_of(root, **settings).parts(compared(thumbs, reference)))
        assert sum(float(loss.detach()) for loss, _ in parts) == pytest.approx(float(expected), abs=1e-6)
        assert sum(figures["baseline"] for _, figures in parts) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing"),
        ({"loss": "kto", "rankings": "plackett_luce"}, "plackett_luce"),
        ({"rankings": "plackett_luce", "target_margin": 1.0}, "target_margin"),
        ({"desirable_weight": 2.0}, "desirable_weight"),
        ({"loss": "kto", "sft_coefficient": 1.0}, "sft_coefficient"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict, named: str):
    with pytest.raises(ConfigError, match=named):
        load(overrides={f"preference.{name}": value for name, value in settings.items()})
