"""Our advantages beside those of verl, OpenRLHF and TRL."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor

from fairlead.config.training import PpoSection
from tests.unit.trainer.ppo.peer_cases import BETA, EXACT, GROUP, Case, Table
from trainer.ppo import objective
from trainer.ppo.advantages import ESTIMATORS, RewardedTokens


def estimated(given: Case, name: str, scale: str = "none", **changes) -> Tensor:
    section = PpoSection(estimator=name, group_scale=scale, num_samples=GROUP, **changes)
    values_BT = given.values_BT if section.has_critic else None
    tokens = RewardedTokens(given.rewards_BT, given.mask_BT, given.scores_B, given.groups_B, values_BT)
    return ESTIMATORS[name](tokens, section).advantages_N


def unbiased(given: Case, whitened_N: Tensor) -> Tensor:
    """As if whitened by the unbiased estimate of the variance."""
    count = len(whitened_N)
    return whitened_N * math.sqrt((count - 1) / count)


def advantages_of_verl(peers: SimpleNamespace, given: Case, table: Table, where: str) -> None:
    verl, index = peers.verl, given.groups_B.numpy()
    mask_BT = given.mask_BT.double()
    rewards = {"token_level_rewards": given.rewards_BT, "response_mask": mask_BT}
    for gamma, lam in ((1.0, 0.95), (0.9, 0.5)):
        theirs, returns = verl.compute_gae_advantage_return(
            **rewards, values=given.values_BT, gamma=gamma, lam=lam
        )
        section = PpoSection(gae_gamma=gamma, gae_lambda=lam)
        ours = ESTIMATORS["gae"](
            RewardedTokens(given.rewards_BT, given.mask_BT, given.scores_B, given.groups_B, given.values_BT),
            section,
        )
        assert ours.returns_N is not None
        table.compare("gae, returns", "verl gae", ours.returns_N, given.flat(returns), where)
        whitened_N = unbiased(given, ours.advantages_N)
        table.compare("gae x sqrt((n-1)/n)", "verl gae", whitened_N, given.flat(theirs), where, 1e-6)
    for scale, normed in (("none", False), ("group", True)):
        theirs, _ = verl.compute_grpo_outcome_advantage(
            given.rewards_BT.clone(), mask_BT, index, norm_adv_by_std_in_grpo=normed
        )
        ours_N = estimated(given, "group", scale)
        table.compare(f"group, scale {scale}", "verl grpo", ours_N, given.flat(theirs), where, 1e-9)
    theirs, _ = verl.compute_rloo_outcome_advantage(given.rewards_BT.clone(), mask_BT, index)
    table.compare("rloo", "verl rloo", estimated(given, "rloo"), given.flat(theirs), where)
    theirs, _ = verl.compute_rloo_vectorized_outcome_advantage(given.rewards_BT.clone(), mask_BT, index)
    table.compare("rloo", "verl rloo_vectorized", estimated(given, "rloo"), given.flat(theirs), where)
    theirs, _ = verl.compute_reinforce_plus_plus_outcome_advantage(
        **rewards, config=SimpleNamespace(gamma=0.9)
    )
    ours_N = unbiased(given, estimated(given, "reinforce++", gae_gamma=0.9))
    table.compare("reinforce++ x sqrt((n-1)/n)", "verl reinforce++", ours_N, given.flat(theirs), where, 1e-6)
    theirs, _ = verl.compute_reinforce_plus_plus_baseline_outcome_advantage(
        given.rewards_BT.clone(), mask_BT, index
    )
    ours_N = unbiased(given, estimated(given, "reinforce++_baseline"))
    name = "reinforce++_baseline x sqrt((n-1)/n)"
    table.compare(name, "verl reinforce++-baseline", ours_N, given.flat(theirs), where, 1e-6)


def advantages_of_openrlhf(peers: SimpleNamespace, given: Case, table: Table, where: str) -> None:
    """Without KL: OpenRLHF adds it to the tokens after the baseline, others to the reward of the answer."""
    given = replace(given, rewards_BT=torch.zeros_like(given.rewards_BT))
    given.rewards_BT[torch.arange(len(given.scores_B)), given.lengths_B - 1] = given.scores_B
    for theirs, ours, scale, limit in (
        ("rloo", "rloo", "none", EXACT),
        ("dr_grpo", "group", "none", EXACT),
        ("group_norm", "group", "group", 1e-4),  # another epsilon beside the deviation
        ("reinforce_baseline", "reinforce++_baseline", "none", 1e-6),
        ("reinforce", "reinforce++", "none", 1e-2),  # in float32, over a deviation of 0 in the case "equal"
    ):
        flat = SimpleNamespace(
            index=list(range(len(given.scores_B))),
            rewards=given.scores_B.clone(),
            kl=torch.zeros_like(given.rewards_BT),
            action_mask=given.mask_BT,
            values=None,
            info={},
        )
        advantage = SimpleNamespace(estimator=theirs, gamma=1.0, lambd=1.0, no_std_norm=False)
        maker = SimpleNamespace(
            strategy=SimpleNamespace(
                args=SimpleNamespace(
                    rollout=SimpleNamespace(n_samples_per_prompt=GROUP),
                    algo=SimpleNamespace(advantage=advantage),
                    reward=SimpleNamespace(clip_range=None),
                )
            ),
            kl_ctl=SimpleNamespace(value=0.0),
            advantage_estimator=theirs,
            get_cumulative_returns=lambda *given_: peers.openrlhf.get_cumulative_returns(None, *given_),
        )
        peers.openrlhf.compute_advantages_and_returns(maker, [flat])
        theirs_N = given.flat(flat.advantages.double())
        what = f"{ours}, scale {scale}" if ours == "group" else ours
        table.compare(what, f"OpenRLHF {theirs}", estimated(given, ours, scale), theirs_N, where, limit)


def advantages_of_trl(peers: SimpleNamespace, given: Case, table: Table, where: str) -> None:
    """TRL's epsilon of 1e-4 is replaced by ours in its text; it corrects the variance in float32."""
    outcome_B = given.rewards_BT.sum(1)
    for scale in ("none", "group", "batch"):
        space = {
            "torch": torch,
            "nanstd": peers.trl.nanstd,
            "rewards": outcome_B,
            "num_generations": GROUP,
            "self": SimpleNamespace(scale_rewards=scale),
        }
        exec(peers.trl.of_groups.replace("1e-4", "1e-6"), space)
        theirs_N = given.flat(space["advantages"][:, None] * given.mask_BT)
        ours_N = estimated(given, "group", scale)
        table.compare(f"group, scale {scale}", f"TRL grpo {scale}", ours_N, theirs_N, where, 1e-7)
    space = {
        "torch": torch,
        "nanstd": peers.trl.nanstd,
        "gather": lambda value: value,
        "rewards": given.scores_B,
        "num_generations": GROUP,
        "old_per_token_logps": given.old_BT,
        "ref_per_token_logps": given.reference_BT,
        "completion_mask": given.mask_BT.double(),
        "self": SimpleNamespace(beta=BETA, reward_clip_range=None),
    }
    exec(peers.trl.leave_one_out, space)
    penalty_BT = objective.k1(given.old_BT, given.reference_BT)
    rewards_BT = objective.penalised_rewards(penalty_BT, given.scores_B, given.lengths_B, coefficient=BETA)
    ours_N = estimated(replace(given, rewards_BT=rewards_BT), "rloo")
    theirs_N = given.flat(space["advantages"][:, None] * given.mask_BT)
    table.compare("score - beta*k1, rloo", "TRL rloo, KL in the reward", ours_N, theirs_N, where)
