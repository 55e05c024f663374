"""One update of PPO: figures computed by hand, the gradient for any split, the first ratio."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from fairlead.types import DeadLetter, WeightVersion
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.ppo_batches import SECTION, double, exact_rollouts, group, outcome, rollouts
from trainer.model_state import unique_tensors
from trainer.ppo import actor_critic, batch, objective, orders, step
from trainer.ppo.prepared import PreparedBatch
from trainer.sequences import pad


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return actor_critic.load(str(tiny_causal_lm(tmp_path_factory.mktemp("lm"))), SECTION)


def test_batch_is_in_task_order_without_dead_tasks():
    found = rollouts()
    assert found.task_ids == (5, 6, 7, 9)
    assert found.scores_B.tolist() == [9.0, -1.0, 1.0, 0.5]
    assert found.cut_off_B.tolist() == [True, False, False, True]
    assert found.token_indices([2, 0]).tolist() == [6, 7, 8, 0, 1, 2, 3, 4]
    flat = torch.arange(11.0)
    rectangle = found.rectangle(flat)
    assert rectangle.shape == (4, 5)
    assert rectangle[1].tolist() == [5.0, 0, 0, 0, 0]
    assert torch.equal(rectangle[found.mask_BT], flat)
    assert batch.from_outcomes([], torch.device("cpu")) is None


def test_batch_of_groups_keeps_the_answers_of_a_task_together():
    pair = group(outcome(9, (1, 4), (5, 2), 1.0, 4), outcome(9, (1, 4), (6, 7, 2), 2.0, 3))
    dead = replace(pair, task=replace(pair.task, task_id=7), result=DeadLetter("x", ""))
    triple = group(*(outcome(3, (1, 8, 8), (answer,), float(answer), 4) for answer in (10, 11, 12)))
    found = batch.from_outcomes([pair, dead, triple], torch.device("cpu"), version=WeightVersion(2, 4))
    assert found is not None
    assert found.task_ids == (3, 3, 3, 9, 9)
    assert found.groups_B.tolist() == [0, 0, 0, 1, 1]
    assert found.groups_B.dtype == torch.int64
    assert found.scores_B.tolist() == [10.0, 11.0, 12.0, 1.0, 2.0]
    assert found.stale_B.tolist() == [False, False, False, False, True]
    assert [sequence.prompt_length for sequence in found.sequences] == [3, 3, 3, 2, 2]
    assert found.sequences[4].token_ids == (1, 4, 6, 7, 2)
    found = replace(found, terms={"good": torch.arange(5.0)})
    sent, update = orders.decode(orders.encode(found, update=4), torch.device("cpu"))
    assert (sent.task_ids, sent.groups_B.tolist(), update) == (found.task_ids, [0, 0, 0, 1, 1], 4)
    assert {name: scores_B.tolist() for name, scores_B in sent.terms.items()} == {"good": [0, 1, 2, 3, 4]}


def test_prepared_figures_match_values_computed_by_hand(models):
    prepared, figures = step.prepare(models, rollouts(), SECTION)
    assert not prepared.values.old_values_N.any()  # the fresh critic returns 0
    # k1 is 0.25 at each of 11 tokens; β = 0.1; scores 9 → 3 − 2 (cut off), −1, 1, 0.5 − 2 (cut off)
    assert figures["kl"] == pytest.approx(11 * 0.25 / 4, abs=1e-5)
    assert figures["reward"] == pytest.approx(9.5 / 4)
    assert figures["reward_with_kl"] == pytest.approx(
        (1.0 - 1.0 + 1.0 - 1.5) / 4 - 0.1 * 11 * 0.25 / 4, abs=1e-5
    )
    assert figures["eos_rate"] == 0.5
    # values are 0, so returns = advantages = Σ (γλ)^k r; the last token of task 5 gets 3 − 2 − 0.025
    returns = prepared.values.returns_N[:5].tolist()
    expected = [0.975]
    for _ in range(4):
        expected.insert(0, -0.025 + 0.95 * expected[0])
    assert returns == pytest.approx(expected, abs=1e-5)
    assert float(prepared.advantages_N.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(prepared.advantages_N.var(unbiased=False)) == pytest.approx(1.0, abs=1e-5)
    width = 0.2 * float(prepared.values.returns_N.std(unbiased=False))
    assert prepared.values.clip_width == pytest.approx(width)


@pytest.mark.parametrize(
    ("budget", "changes"),
    [
        (1, {}),
        (7, {"loss_aggregation": "constant", "kl_in": "loss"}),
        (12, {"loss": "gspo", "kl_in": "loss", "proximal_logprobs": "all"}),
        (1, {"estimator": "pairs", "loss": "online_dpo_soft"}),
    ],
)
def test_gradient_does_not_depend_on_micro_batches(models, budget, changes):
    found = double(models)
    recipe = SECTION.model_copy(update=changes)
    groups_B = torch.arange(4) // recipe.answers_per_loss
    prepared, _ = step.prepare(found, replace(exact_rollouts(), groups_B=groups_B), recipe)
    # Pairs are best, worst: scores 1 and -1, then 1 and -1.5.
    members = [3, 1, 0, 2] if recipe.answers_per_loss == 1 else [2, 3, 0, 1]
    assert prepared.learned == ((0, 1, 2, 3))

    def gradients(max_tokens: int) -> torch.Tensor:
        section = recipe.model_copy(update={"max_micro_batch_tokens": max_tokens})
        for module in (found.policy, found.critic):
            module.zero_grad()
        step.accumulate_gradients(found, prepared, members, section, temperature=0.7)
        parameters = [*found.policy.parameters(), *found.critic.parameters()]
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    whole, split = gradients(10_000), gradients(budget)
    assert whole.abs().max() > 1e-2
    assert torch.allclose(split, whole, rtol=1e-6, atol=1e-9)


def test_half_batches_are_weighted_by_their_tokens(models):
    """The mean over all tokens is not the mean of the halves' means: 1 + 2 tokens against 5 + 3."""
    found = double(models)
    prepared, _ = step.prepare(found, exact_rollouts(), SECTION)

    def gradient(members: list[int]) -> torch.Tensor:
        found.policy.zero_grad()
        step.accumulate_gradients(found, prepared, members, SECTION, temperature=1.0)
        return torch.cat([p.grad.flatten() for p in found.policy.parameters()])

    both, short, long = gradient([0, 1, 2, 3]), gradient([1, 3]), gradient([0, 2])
    # Llama's norms compute in float32 for any dtype of the weights, hence relative to the largest entry.
    assert (both - (3 * short + 8 * long) / 11).abs().max() < 1e-6 * both.abs().max()
    assert (both - (short + long) / 2).abs().max() > 1e-2 * both.abs().max()


def test_own_logprobs_give_ratio_one_and_no_mismatch(models):
    found = rollouts()
    with torch.no_grad():
        own = models.logprobs(pad(found.sequences, torch.device("cpu")), temperature=0.7)
    own_batch = replace(found, behaviour_N=own)
    fresh = actor_critic.ActorCritic(copy.deepcopy(models.policy), copy.deepcopy(models.critic), SECTION)
    prepared, _ = step.prepare(fresh, own_batch, SECTION)
    section = SECTION.model_copy(update={"epochs": 3, "mini_batch_size": 2})
    figures = step.optimise(fresh, prepared, section, temperature=0.7, seed=0, update=0)
    assert figures["ratio_first"] == pytest.approx(1.0, abs=1e-6)
    assert figures["mismatch_max"] < 1e-5
    assert figures["policy_kl"] > 0  # the policy changed in later steps
    assert figures["lr"] == 1e-3
    other = step.optimise(fresh, prepared, section, temperature=1.0, seed=0, update=0)
    assert other["mismatch_max"] > 0.01  # the wrong temperature shows


def test_step_raises_good_tokens_and_lowers_bad_ones(models):
    fresh = actor_critic.ActorCritic(copy.deepcopy(models.policy), copy.deepcopy(models.critic), SECTION)
    found = rollouts()
    padded = pad(found.sequences, torch.device("cpu"))
    with torch.no_grad():
        before = fresh.logprobs(padded, temperature=1.0)
    own_batch = replace(found, behaviour_N=before)
    prepared, _ = step.prepare(fresh, own_batch, SECTION)
    step.optimise(fresh, prepared, SECTION, temperature=1.0, seed=0, update=0)
    with torch.no_grad():
        after = fresh.logprobs(padded, temperature=1.0)
        values = fresh.values(padded)
    assert float(((after - before) * prepared.advantages_N).sum()) > 0
    assert float((values - prepared.values.returns_N).square().mean()) < float(
        prepared.values.returns_N.square().mean()
    )


def test_tied_tensors_are_stored_once(tmp_path):
    tied = actor_critic.load(str(tiny_causal_lm(tmp_path, tie_word_embeddings=True)), SECTION)
    names = unique_tensors(tied.policy)
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    state = tied.state()
    tied.load_state(state)


def test_masked_answers_have_no_gradient_and_an_update_of_nothing_else_does_nothing(models):
    """Tasks 5 and 9 were cut off: the update is that of the other two, and of none if all were."""
    found, section = exact_rollouts(), SECTION.model_copy(update={"mask_cut_off": True})

    def updated(rollouts, recipe) -> tuple[torch.Tensor, dict[str, float]]:
        fresh = double(models)
        prepared, figures = step.prepare(fresh, rollouts, recipe)
        figures |= step.optimise(fresh, prepared, recipe, temperature=1.0, seed=0, update=0)
        return torch.cat([p.detach().flatten() for p in fresh.policy.parameters()]), figures

    start = torch.cat([p.detach().flatten().double() for p in models.policy.parameters()])
    masked, figures = updated(found, section)
    assert figures["masked_rollouts"] == 0.5
    fresh = double(models)
    prepared, _ = step.prepare(fresh, found, SECTION)
    two = replace(prepared, learned=(1, 2))
    step.optimise(fresh, two, SECTION, temperature=1.0, seed=0, update=0)
    assert torch.equal(masked, torch.cat([p.detach().flatten() for p in fresh.policy.parameters()]))
    assert not torch.equal(masked, start)
    nothing, figures = updated(replace(found, cut_off_B=torch.ones(4, dtype=torch.bool)), section)
    assert torch.equal(nothing, start)
    assert "policy_loss" not in figures
    assert figures["masked_rollouts"] == 1.0


def test_update_of_pairs_learns_the_best_and_the_worst_answer_in_whole_pairs(models, caplog):
    """Of the groups (9, -1, 1), cut off at the first, and (0.5): one pair; and none if rewards are equal."""
    changes = {"estimator": "pairs", "loss": "online_dpo", "mini_batch_size": 2, "mask_cut_off": True}
    section = SECTION.model_copy(update=changes)
    found = replace(exact_rollouts(frozenset({6})), groups_B=torch.tensor([0, 0, 0, 1]))
    for scores, learned in (((9.0, -1.0, 1.0, 0.5), (2, 1)), ((9.0, 1.0, 1.0, 0.5), ())):
        fresh = double(models)
        given = replace(found, scores_B=torch.tensor(scores, dtype=torch.float64))
        prepared, figures = step.prepare(fresh, given, section)
        assert prepared.learned == learned
        assert prepared.old_logprobs_N is given.behaviour_N
        assert figures["groups_without_signal"] == 1 - len(learned) / 4
        assert (figures["masked_rollouts"], figures["stale_rollouts"]) == (0.5, 0.25)
        assert "behaviour_weight" not in figures
        figures = step.optimise(fresh, prepared, section, temperature=1.0, seed=0, update=0)
        if not learned:
            assert figures.keys() == {"skipped_steps", "lr"}
            continue
        best_N, worst_N = ((given.per_token(torch.arange(4)) == one).double() for one in learned)
        logprobs_N = models.logprobs(pad(given.sequences, torch.device("cpu")), temperature=1.0).detach()
        change_N = logprobs_N - given.reference_N
        sums = [float((change_N * own_N).sum()) for own_N in (best_N, worst_N)]
        assert figures["margin"] == pytest.approx(0.1 * (sums[0] - sums[1]), rel=1e-5)
        assert [figures["chosen_change"], figures["rejected_change"]] == pytest.approx(sums, rel=1e-5)
        assert figures["accuracy"] == float(sums[0] > sums[1])
        with torch.no_grad():
            after_N = fresh.logprobs(pad(given.sequences, torch.device("cpu")), temperature=1.0)
        moved_N = after_N - logprobs_N
        assert float((moved_N * best_N).sum()) > float((moved_N * worst_N).sum())


def test_kl_is_charged_in_the_loss_with_the_coefficient_of_the_update(models):
    """Advantages without KL; the gradient is that of the policy loss plus β times that of the KL loss."""
    found = double(models)
    section = SECTION.model_copy(update={"kl_in": "loss", "loss_aggregation": "tokens"})
    in_reward, _ = step.prepare(found, exact_rollouts(), SECTION, kl_coefficient=0.0)
    in_loss, figures = step.prepare(found, exact_rollouts(), section, kl_coefficient=0.7)
    assert in_loss.kl_coefficient == 0.7
    assert torch.equal(in_loss.advantages_N, in_reward.advantages_N)
    assert figures["reward_with_kl"] == pytest.approx(-0.5 / 4 - 0.7 * 11 * 0.25 / 4, abs=1e-5)

    def gradient(prepared: PreparedBatch) -> tuple[torch.Tensor, dict[str, float]]:
        found.policy.zero_grad()
        figures = step.accumulate_gradients(found, prepared, range(4), section, temperature=1.0)
        return torch.cat([p.grad.flatten() for p in found.policy.parameters()]), figures

    whole, figures = gradient(in_loss)
    without, _ = gradient(in_reward)
    given = in_loss.batch
    found.policy.zero_grad()
    logprobs_N = found.logprobs(pad(given.sequences, torch.device("cpu")), temperature=1.0)
    loss = objective.kl_loss(logprobs_N, in_loss.old_logprobs_N, given.reference_N).mean()
    loss.backward()
    kl_only = torch.cat([p.grad.flatten() for p in found.policy.parameters()])
    assert figures["kl_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert (whole - without - 0.7 * kl_only).abs().max() < 1e-6 * whole.abs().max()
