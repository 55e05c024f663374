"""Our losses, KL estimates and weights beside those of verl, OpenRLHF and TRL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from fairlead.config.training import PpoSection
from tests.unit.trainer.ppo.peer_cases import BETA, EXACT, LONGEST, Case, Table
from trainer.ppo import objective
from trainer.ppo.losses import LOSSES, Aggregation, LossTokens

Differentiated = Callable[[Tensor], Tensor]


def compare_loss(
    table: Table,
    what: str,
    peer: str,
    given: Case,
    ours: Differentiated,
    theirs: Differentiated,
    where: str,
    limit: float = EXACT,
) -> None:
    """Compare a loss, and its gradient by log π, of two functions of log π [B, T]."""
    found = []
    for loss in (ours, theirs):
        logprobs_BT = given.logprobs_BT.clone().requires_grad_()
        value = loss(logprobs_BT)
        value.backward()
        assert logprobs_BT.grad is not None
        found.append((value.detach()[None], given.flat(logprobs_BT.grad)))
    table.compare(what, peer, found[0][0], found[1][0], where, limit)
    table.compare(f"d {what}", peer, found[0][1], found[1][1], where, limit)


def own_loss(
    given: Case, section: PpoSection, weights_N: Tensor | float = 1.0, kl: float = 0.0, parts: int = 3
) -> Differentiated:
    """The loss of an optimizer step as `trainer.ppo.step` builds it, from several micro-batches."""

    def loss(logprobs_BT: Tensor) -> Tensor:
        lengths = given.lengths_B.tolist()
        aggregation = Aggregation.of(section.aggregation, lengths, max_new_tokens=LONGEST)
        lengths_N = given.lengths_B.repeat_interleave(given.lengths_B)
        total = torch.zeros((), dtype=torch.float64)
        for members in torch.arange(len(lengths)).chunk(parts):
            where_N = (given.rows_N[:, None] == members).any(1)
            logprobs_N, old_N, advantages_N, reference_N = (
                given.flat(one)[where_N]
                for one in (logprobs_BT, given.old_BT, given.advantages_BT, given.reference_BT)
            )
            rows_N = given.rows_N[where_N] - members[0]
            loss_N = LOSSES[section.loss](
                LossTokens(logprobs_N, old_N, advantages_N, rows_N, old_N, 0.0), section
            ).loss_N
            if isinstance(weights_N, Tensor):
                loss_N = loss_N * weights_N[where_N]
            if kl:
                loss_N = loss_N + kl * objective.kl_loss(logprobs_N, old_N, reference_N)
            total = total + aggregation.total(loss_N, lengths_N[where_N]) / aggregation.divisor
        return total

    return loss


MODES = {"tokens": "token-mean", "sequences": "seq-mean-token-mean", "constant": "seq-mean-token-sum-norm"}


def losses_of_verl(peers: SimpleNamespace, given: Case, table: Table, where: str) -> None:
    verl, mask_BT = peers.verl, given.mask_BT.double()
    for name, theirs, clips in (
        ("ppo", verl.compute_policy_loss_vanilla, {"dual_clip": 3.0, "clip_range": 0.2}),
        (
            "ppo",
            verl.compute_policy_loss_vanilla,
            {"dual_clip": 1.5, "clip_range": 0.1, "clip_range_high": 0.3},
        ),
        ("gspo", verl.compute_policy_loss_gspo, {"clip_range": 0.01, "clip_range_high": 0.02}),
        ("cispo", verl.compute_policy_loss_cispo, {"clip_range": 0.2, "clip_range_high": 0.4}),
    ):
        high = clips.get("clip_range_high", clips["clip_range"])
        config = verl.Config(
            clip_ratio=clips["clip_range"],
            clip_ratio_low=clips["clip_range"],
            clip_ratio_high=high,
            clip_ratio_c=clips.get("dual_clip", 3.0),
            global_batch_info={},
        )
        for aggregation, mode in MODES.items():
            section = PpoSection(loss=name, loss_aggregation=aggregation, **clips)
            compare_loss(
                table,
                f"{name}, {aggregation}",
                f"verl {name}, {mode}",
                given,
                own_loss(given, section),
                lambda logprobs_BT, mode=mode, theirs=theirs, config=config: theirs(
                    given.old_BT, logprobs_BT, given.advantages_BT, mask_BT, mode, config
                )[0],
                where,
                1e-6,  # an epsilon of 1e-8 beside the number of tokens, and sums that cancel
            )
    width = 0.3
    theirs, _ = verl.compute_value_loss(
        given.values_BT, given.rewards_BT, given.advantages_BT, mask_BT, width
    )
    ours = objective.value_loss(
        *(given.flat(one) for one in (given.values_BT, given.advantages_BT, given.rewards_BT)),
        clip_width=width,
    ).mean()
    table.compare("value loss", "verl", ours[None], theirs[None], where, 1e-7)


def losses_of_openrlhf(peers: SimpleNamespace, given: Case, table: Table, where: str) -> None:
    for name, clips, by_token in (
        ("ppo", {"clip_range": 0.2}, True),
        ("ppo", {"clip_range": 0.2, "clip_range_high": 0.28, "dual_clip": 3.0}, False),
        ("gspo", {"clip_range": 0.01, "clip_range_high": 0.02}, False),
    ):
        theirs = peers.openrlhf.PolicyLoss(
            clips["clip_range"],
            clips.get("clip_range_high", clips["clip_range"]),
            clips.get("dual_clip"),
            token_level_loss=by_token,
            policy_loss_type=name,
        )
        aggregation = "tokens" if by_token else "sequences"
        compare_loss(
            table,
            f"{name}, {aggregation}",
            f"OpenRLHF PolicyLoss {name}, {aggregation}",
            given,
            own_loss(given, PpoSection(loss=name, loss_aggregation=aggregation, **clips)),
            lambda logprobs_BT, theirs=theirs: theirs(
                logprobs_BT, given.old_BT, given.advantages_BT, given.mask_BT.double()
            )[0],
            where,
            1e-6,
        )
    theirs = peers.openrlhf.ValueLoss(0.3)(
        given.values_BT, given.advantages_BT, given.rewards_BT, given.mask_BT.double()
    )
    ours = objective.value_loss(
        *(given.flat(one) for one in (given.values_BT, given.advantages_BT, given.rewards_BT)), clip_width=0.3
    ).mean()
    table.compare("value loss", "OpenRLHF ValueLoss", ours[None], theirs[None], where)


def losses_of_trl(peers: SimpleNamespace, given: Case, table: Table, where: str) -> None:
    """Without and with the KL loss; CISPO of TRL has no lower clip, and its upper one counts from 0."""
    for theirs, level, aggregation, loss, beta in (
        ("dapo", "token", "tokens", "ppo", 0.0),
        ("dapo", "token", "tokens", "ppo", BETA),
        ("grpo", "token", "sequences", "ppo", BETA),
        ("dr_grpo", "token", "constant", "ppo", BETA),
        ("grpo", "sequence", "sequences", "gspo", 0.0),
        ("cispo", "token", "tokens", "cispo", 0.0),
    ):
        low, high = (1 - 1e-9, 0.4) if loss == "cispo" else (0.2, 0.28)
        section = PpoSection(loss=loss, loss_aggregation=aggregation, clip_range=low, clip_range_high=high)

        def of_trl(
            logprobs_BT: Tensor,
            theirs: str = theirs,
            level: str = level,
            beta: float = beta,
            low: float = low,
            high: float = high,
        ) -> Tensor:
            trainer = SimpleNamespace(
                _get_per_token_logps_and_entropies=lambda *_, **__: (
                    logprobs_BT,
                    torch.zeros_like(logprobs_BT),
                    None,
                ),
                _metrics={"train": defaultdict(list)},
                _entropy_bonus_enabled=False,
                accelerator=SimpleNamespace(
                    num_processes=1, gather=lambda value: value, reduce=lambda value, reduction: value
                ),
                args=SimpleNamespace(use_bias_correction_kl=True, delta=None, steps_per_generation=1),
                aux_loss_enabled=False,
                beta=beta,
                current_gradient_accumulation_steps=1,
                epsilon_high=1 + high if theirs == "cispo" else high,
                epsilon_low=low,
                importance_sampling_level=level,
                loss_type=theirs,
                max_completion_length=LONGEST,
                model=SimpleNamespace(training=True),
                off_policy_mask_threshold=None,
                top_entropy_quantile=1.0,
                use_vllm=False,
            )
            mask_BT = given.mask_BT.long()
            inputs = {
                "prompt_ids": mask_BT[:, :1],
                "prompt_mask": mask_BT[:, :1],
                "completion_ids": mask_BT,
                "completion_mask": mask_BT,
                "advantages": given.advantages_B,
                "old_per_token_logps": given.old_BT,
                "ref_per_token_logps": given.reference_BT,
                "num_items_in_batch": mask_BT.sum(),
            }
            found: Tensor = peers.trl._compute_loss(trainer, None, inputs)
            return found

        name = f"{loss}, {aggregation}" + (" + beta*KL" if beta else "")
        compare_loss(
            table,
            name,
            f"TRL {theirs}, {level}" + (", beta" if beta else ""),
            given,
            own_loss(given, section, kl=beta),
            of_trl,
            where,
        )


def kl_and_weights(peers: SimpleNamespace, given: Case, table: Table, where: str) -> None:
    old_N, reference_N, behaviour_N = (
        given.flat(one) for one in (given.old_BT, given.reference_BT, given.behaviour_BT)
    )
    for name in ("k1", "k2", "k3"):
        ours_N = objective.penalty_kl(old_N, reference_N, estimator=name)
        theirs_N = peers.verl.kl_penalty(old_N, reference_N, name)
        table.compare(f"KL in the reward, {name}", "verl kl_penalty", ours_N, theirs_N, where)

    def ours(logprobs_BT: Tensor) -> Tensor:
        return objective.kl_loss(given.flat(logprobs_BT), old_N, reference_N).sum()

    def of_openrlhf(logprobs_BT: Tensor) -> Tensor:
        # Its value has no importance weight, its gradient has one; compared is the gradient.
        flat_N = given.flat(logprobs_BT)
        kl_N = peers.openrlhf.compute_approx_kl(flat_N, reference_N, old_N, "k3", unbiased_gradient=True)
        constant = ours(logprobs_BT.detach()) - kl_N.double().sum().detach()
        return kl_N.double().sum() + constant

    compare_loss(table, "KL loss", "OpenRLHF k3, unbiased, float32", given, ours, of_openrlhf, where, 1e-5)

    def on_policy(logprobs_BT: Tensor) -> Tensor:
        flat_N = given.flat(logprobs_BT)
        return objective.kl_loss(flat_N, flat_N.detach(), reference_N).sum()

    def of_verl(logprobs_BT: Tensor) -> Tensor:
        found: Tensor = peers.verl.kl_penalty(given.flat(logprobs_BT), reference_N, "k3+").sum()
        return found

    compare_loss(table, "KL loss at the first step", "verl k3+", given, on_policy, of_verl, where)
    log_ratio_BT, mask_BT = given.old_BT - given.behaviour_BT, given.mask_BT.double()
    truncated_N = objective.behaviour_weights(old_N, behaviour_N, limit=2.0)
    masked_N = objective.masked_weights(old_N, behaviour_N, low=0.5, high=5.0)
    for ours_N, threshold in ((truncated_N, 2.0), (masked_N, "0.5_5.0")):
        theirs, _ = peers.verl.compute_rollout_correction_weights(log_ratio_BT, mask_BT, "token", threshold)
        table.compare(
            f"behaviour weights, {threshold}", "verl token weights", ours_N, given.flat(theirs), where
        )
    # verl bounds the reciprocal of the ratio.
    kept, _ = peers.verl.compute_rollout_rejection_mask(log_ratio_BT, mask_BT, "seq_mean_k1", "0.769_1.429")
    theirs, _ = peers.verl.compute_rollout_correction_weights(log_ratio_BT, mask_BT, "token", 1 / 0.769)
    ours_N = objective.sequence_masked_weights(
        old_N, behaviour_N, given.rows_N, low=1 / 1.429, high=1 / 0.769
    )
    name = "behaviour weights, masked answers"
    table.compare(name, "verl seq_mean_k1 x token weights", ours_N, given.flat(theirs * kept), where)
    low, high = 0.5, 20.0  # so high that no token is truncated, which OpenRLHF does not do
    for level, weights_N in (
        ("token", objective.masked_weights(old_N, behaviour_N, low=low, high=high)),
        ("seq", objective.sequence_masked_weights(old_N, behaviour_N, given.rows_N, low=low, high=high)),
    ):
        theirs = peers.openrlhf.PolicyLoss(is_correction_level=level, is_correction_threshold=(low, high))
        compare_loss(
            table,
            f"ppo with masked weights, {level}",
            f"OpenRLHF is_correction {level} mask",
            given,
            own_loss(given, PpoSection(clip_range=0.2), weights_N=weights_N),
            lambda logprobs_BT, theirs=theirs: theirs(
                logprobs_BT, given.old_BT, given.advantages_BT, mask_BT, given.behaviour_BT
            )[0],
            where,
            1e-7,
        )


def lengths(peers: SimpleNamespace, given: Case, table: Table, where: str) -> None:
    experience = SimpleNamespace(response_length=given.lengths_B, rewards=given.scores_B.clone())
    peers.openrlhf.apply_overlong_penalty([experience], LONGEST, 3.0, 1.7)
    section = PpoSection(overlong_penalty=1.7, overlong_buffer_tokens=3)
    penalties_B = objective.overlong_penalties(given.lengths_B, section, max_new_tokens=LONGEST)
    table.compare(
        "overlong penalty", "OpenRLHF (DAPO)", given.scores_B - penalties_B, experience.rewards, where, 1e-6
    )
