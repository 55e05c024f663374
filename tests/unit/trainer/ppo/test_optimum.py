"""PPO against an optimum known in closed form: a KL-regularised bandit over token sequences.

Every answer of a real, tiny transformer is enumerated, so J(π) = E_π[r] − β·KL(π ‖ π_ref) is exact. Its
maximum is β·log E_ref[exp(r/β)], reached by π* ∝ π_ref·exp(r/β). The policy is trained by the real Learner.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from fairlead.config.training import PpoSection
from fairlead.types import (
    Completion,
    FinishReason,
    Outcome,
    PromptTask,
    Rollout,
    SamplingParams,
    VersionSpan,
    WeightVersion,
)
from tests.tiny import tiny_causal_lm
from trainer.ppo import actor_critic, batch
from trainer.ppo.learner import Learner

PROMPT, EOS = (1, 3), 2
SMALL, LARGER = (6, 2), (8, 3)
"""Vocabulary, and tokens of an answer at most: 31 answers, and 400."""


@dataclass(frozen=True)
class Answers:
    """Every possible answer of a policy; S answers, T positions."""

    ids: tuple[tuple[int, ...], ...]
    logprobs_ST: torch.Tensor
    """float64, 0 after the end."""

    @property
    def logprobs_S(self) -> torch.Tensor:
        return self.logprobs_ST.sum(1)


@torch.no_grad()
def enumerate_answers(policy, vocabulary: int, length: int) -> Answers:
    """Enumerate all continuations, token by token, from all logits."""
    whole = []
    prefixes = [((), [])]
    for position in range(length):
        logits = policy(torch.tensor([[*PROMPT, *prefix] for prefix, _ in prefixes])).logits[:, -1]
        table = logits.double().log_softmax(-1).tolist()
        longer = []
        for (prefix, found), row in zip(prefixes, table, strict=True):
            for token in range(vocabulary):
                answer = (*prefix, token), [*found, row[token]]
                continues = token != EOS and position + 1 < length
                (longer if continues else whole).append(answer)
        prefixes = longer
    rows = [[*row, *[0.0] * (length - len(row))] for _, row in whole]
    return Answers(tuple(ids for ids, _ in whole), torch.tensor(rows, dtype=torch.float64))


def objective(logprobs_S, reference_S, rewards_S, beta: float) -> float:
    return float((logprobs_S.exp() * (rewards_S - beta * (logprobs_S - reference_S))).sum())


def divergence(logprobs_S, reference_S) -> float:
    return float((logprobs_S.exp() * (logprobs_S - reference_S)).sum())


class Bandit:
    def __init__(self, folder, *, size: tuple[int, int], section: PpoSection, seed: int = 0) -> None:
        self.vocabulary, self.length = size
        self.section = section
        path = tiny_causal_lm(
            folder, seed=seed, vocab_size=self.vocabulary, num_hidden_layers=1, initializer_range=0.1
        )
        self.models = actor_critic.load(str(path), section)
        self.draw = torch.Generator().manual_seed(seed)
        self.reference = self.answers()
        count = len(self.reference.ids)
        self.rewards_S = 1 + torch.randn(count, dtype=torch.float64, generator=self.draw)

    def answers(self) -> Answers:
        return enumerate_answers(self.models.policy, self.vocabulary, self.length)

    def rollouts(self) -> batch.RolloutBatch:
        now = self.answers()
        drawn = torch.multinomial(
            now.logprobs_S.exp(), self.section.batch_size, replacement=True, generator=self.draw
        )
        tasks = enumerate(drawn.reshape(-1, self.section.num_samples).tolist())
        found = batch.from_outcomes(
            [self.outcome(task, now, indices) for task, indices in tasks], torch.device("cpu")
        )
        assert found is not None
        return found

    def outcome(self, task: int, now: Answers, indices: list[int]) -> Outcome:
        rollouts = tuple(self.rollout(now, index) for index in indices)
        return Outcome(
            PromptTask(task, PROMPT, "", SamplingParams(), WeightVersion(1, 0)), rollouts, "w", 1, 0
        )

    def rollout(self, now: Answers, index: int) -> Rollout:
        ids, version = now.ids[index], WeightVersion(1, 0)
        behaviour, reference = (
            tuple(table.logprobs_ST[index, : len(ids)].tolist()) for table in (now, self.reference)
        )
        completion = Completion(ids, behaviour, FinishReason.STOP, (VersionSpan(version, 0, len(ids)),))
        return Rollout(completion, float(self.rewards_S[index]), "bandit", reference)

    def learn(self) -> torch.Tensor:
        """Run every update; return the final log-probs of all answers."""
        learner = Learner(self.models, self.section, temperature=1.0, seed=0)
        for update in range(self.section.updates):
            figures = learner.learn(self.rollouts(), update=update)
            assert figures["mismatch_max"] < 1e-4
        return self.answers().logprobs_S


def recipe(beta: float, **changes) -> PpoSection:
    settings = {
        "device": "cpu",
        "updates": 40,
        "batch_size": 128,
        "mini_batch_size": 128,
        "epochs": 2,
        "learning_rate": 1.5e-2,
        "critic_learning_rate": 1e-2,
        "kl_coefficient": beta,
        "gae_lambda": 1.0,
    }
    return PpoSection(**(settings | changes))


def shortfall(bandit: Bandit, logprobs_S: torch.Tensor, beta: float) -> tuple[float, float]:
    """(J* − J)/J*, and the same relative to the possible gain over the reference."""
    reference_S = bandit.reference.logprobs_S
    best = beta * float((reference_S + bandit.rewards_S / beta).logsumexp(0))
    start = objective(reference_S, reference_S, bandit.rewards_S, beta)
    found = objective(logprobs_S, reference_S, bandit.rewards_S, beta)
    assert found <= best + 1e-9
    return (best - found) / best, (best - found) / (best - start)


def test_closed_form_is_the_optimum(tmp_path):
    """Without training: J is evaluated at π*, and every other distribution has a smaller J."""
    bandit = Bandit(tmp_path, size=SMALL, section=recipe(0.5))
    reference_S = bandit.reference.logprobs_S
    assert float(reference_S.exp().sum()) == pytest.approx(1.0, abs=1e-6)
    best_S = (reference_S + bandit.rewards_S / 0.5).log_softmax(0)
    assert abs(shortfall(bandit, best_S, 0.5)[0]) < 1e-6
    noise_S = torch.randn(len(best_S), dtype=torch.float64, generator=bandit.draw)
    assert shortfall(bandit, (best_S + 0.3 * noise_S).log_softmax(0), 0.5)[0] > 0.001
    assert shortfall(bandit, reference_S, 0.5)[1] == pytest.approx(1.0)


@pytest.mark.parametrize("beta", [0.2, 0.5, 1.0])
def test_ppo_reaches_95_percent_of_the_optimum(tmp_path, beta):
    bandit = Bandit(tmp_path, size=SMALL, section=recipe(beta))
    of_the_optimum, of_the_gain = shortfall(bandit, bandit.learn(), beta)
    assert of_the_optimum < 0.05
    assert of_the_gain < 0.08  # without what the reference already has


WITHOUT_CRITIC = ("group", "rloo", "reinforce++", "reinforce++_baseline")
OTHER_BETAS = [
    pytest.param(estimator, beta, marks=pytest.mark.slow)
    for estimator in WITHOUT_CRITIC
    for beta in (0.2, 1.0)
]


@pytest.mark.parametrize(
    ("estimator", "beta"), [*((estimator, 0.5) for estimator in WITHOUT_CRITIC), *OTHER_BETAS]
)
def test_estimators_without_a_critic_reach_95_percent_of_the_optimum(tmp_path, estimator, beta):
    bandit = Bandit(tmp_path, size=SMALL, section=recipe(beta, estimator=estimator, num_samples=4))
    assert bandit.models.critic is None
    assert shortfall(bandit, bandit.learn(), beta)[0] < 0.05


@pytest.mark.parametrize("beta", [0.5, *(pytest.param(beta, marks=pytest.mark.slow) for beta in (0.2, 1.0))])
def test_online_dpo_with_soft_labels_reaches_95_percent_of_the_optimum(tmp_path, beta):
    """The order of answers has no optimum; the probability that one is better has that of the reward.

    At the learning rate of the clipped losses and β = 0.2 the policy collapses to one answer, 21% below.
    """
    groups = {"estimator": "pairs", "loss": "online_dpo_soft", "num_samples": 2}
    section = recipe(beta, learning_rate=5e-3, **groups)
    bandit = Bandit(tmp_path, size=SMALL, section=section)
    assert shortfall(bandit, bandit.learn(), beta)[0] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.2, 0.5, 1.0])
@pytest.mark.parametrize(
    "changes",
    [
        {"group_scale": "group"},
        {"group_scale": "batch"},
        {"loss": "gspo"},
        {"loss_aggregation": "constant"},
        {"loss_aggregation": "sequences"},
        {"kl_in": "loss"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_variants_of_group_reach_95_percent_of_the_optimum(tmp_path, beta, changes):
    """The KL loss has no credit for later tokens, so its own optimum is slightly below."""
    section = recipe(beta, estimator="group", num_samples=4, **changes)
    bandit = Bandit(tmp_path, size=SMALL, section=section)
    assert shortfall(bandit, bandit.learn(), beta)[0] < 0.05


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_ppo_reaches_95_percent_of_the_optimum_with_longer_answers(tmp_path, beta, seed):
    """400 answers with independent rewards; the next test is about β = 0.2."""
    changes = {"updates": 200, "batch_size": 256, "learning_rate": 5e-3, "critic_learning_rate": 5e-3}
    section = recipe(beta, **changes)
    bandit = Bandit(tmp_path, size=LARGER, section=section, seed=seed)
    assert shortfall(bandit, bandit.learn(), beta)[0] < 0.05


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("estimator", "seed"), [("gae", 0), ("gae", 2), ("rloo", 0), ("rloo", 1), ("rloo", 2)]
)
def test_beta_that_falls_to_a_small_one_finds_answers_that_are_rare_before(tmp_path, estimator, seed):
    """With β = 0.2 from the start, learning settles 16% below the optimum: a few answers are nearly all of
    it, and those with common beginnings that are bad on average become too rare to be sampled. Gradient
    ascent on J itself settles 6 to 10% below for the same reason. While β falls from 2, the optimum moves
    only a little in each update. With seed 1 a first token that begins 0.4 of the optimum's answers is lost
    nevertheless if an update has only 256 answers, and learning settles 6% below.
    """
    groups = {"estimator": "rloo", "num_samples": 8} if estimator == "rloo" else {}
    size = 1024 if estimator == "rloo" else 256
    rates = {"learning_rate": 5e-3, "critic_learning_rate": 5e-3}
    falls = {"kl_control": "linear", "kl_coefficient_end": 0.2, "kl_schedule_updates": 140}
    section = recipe(2.0, updates=200, batch_size=size, mini_batch_size=size, **rates, **groups, **falls)
    bandit = Bandit(tmp_path, size=LARGER, section=section, seed=seed)
    assert shortfall(bandit, bandit.learn(), 0.2)[0] < 0.05


def test_ppo_with_a_large_beta_stays_at_the_reference(tmp_path):
    bandit = Bandit(tmp_path, size=SMALL, section=recipe(50.0, updates=20))
    assert divergence(bandit.learn(), bandit.reference.logprobs_S) < 0.01
