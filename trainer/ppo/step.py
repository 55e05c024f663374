"""One update of PPO: prepare a rollout batch once, then optimise over it in mini-batches.

The formulas are in `objective`. Knows neither queue nor versions. The loss is divided by a number of the
whole optimizer step, so the gradient depends neither on how the step is split into micro-batches nor on the
number of ranks.

Shapes: B rollouts, T response positions, N response tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fairlead.config.training import OF_PAIRS, PpoSection
from trainer import memory
from trainer.demonstrations import DemonstrationStream
from trainer.distributed import collectives
from trainer.distributed import micro_batches as divided
from trainer.distributed.group import Group
from trainer.ppo import objective
from trainer.ppo.actor_critic import ActorCritic
from trainer.ppo.advantages import ESTIMATORS, RewardedTokens, pairs
from trainer.ppo.batch import RolloutBatch
from trainer.ppo.losses import FIGURES_OF_PAIRS, LOSSES, Aggregation, LossTokens, TokenLosses
from trainer.ppo.prepared import PreparedBatch, ValueTargets
from trainer.ppo.prepared import figures as rollout_figures
from trainer.ppo.score_scale import ScoreScale
from trainer.seeds import permutation
from trainer.sequences import PaddedSequences, TokenSequence

_OF_EVERY_STEP = (
    "policy_loss",
    "kl_loss",
    "value_loss",
    "ptx_loss",
    "clip_fraction",
    "policy_kl",
    *FIGURES_OF_PAIRS,
    "policy_gradient_norm",
    "critic_gradient_norm",
)
_OF_THE_FIRST_STEP = ("entropy", "mismatch_mean", "mismatch_max")


def micro_batches(
    batch: RolloutBatch,
    members: Sequence[int],
    *,
    max_tokens: int,
    group: Group | None = None,
    together: int = 1,
) -> Iterator[tuple[PaddedSequences, Tensor]]:
    """Yield the padded sequences of each micro-batch of this rank, and the positions of its tokens in the
    flat tensors. `together` consecutive members are never divided.
    """
    sequences = [batch.sequences[index] for index in members]
    for part, padded in divided.padded(
        sequences, batch.scores_B.device, max_tokens=max_tokens, group=group, together=together
    ):
        yield padded, batch.token_indices([members[index] for index in part])


@torch.no_grad()
def prepare(
    models: ActorCritic,
    batch: RolloutBatch,
    section: PpoSection,
    *,
    kl_coefficient: float | None = None,
    temperature: float = 1.0,
    scale: ScoreScale | None = None,
    max_new_tokens: int | None = None,
) -> tuple[PreparedBatch, dict[str, float]]:
    """Compute proximal log-probs, old values, rewards, advantages, returns, and the figures of the rollouts.

    Args:
        models: before the first step on this batch.
        batch: the rollouts; those that are not stale were sampled by exactly these weights.
        section: the recipe.
        kl_coefficient: β of this update; None: the section's.
        temperature: sampling temperature of the rollouts.
        scale: mean and deviation of the scores, including this batch; only with `normalise_scores`.
        max_new_tokens: limit of the length of an answer; None: the longest of the batch.
    """
    beta = section.kl_coefficient if kl_coefficient is None else kl_coefficient
    limit = batch.mask_BT.shape[1] if max_new_tokens is None else max_new_tokens
    batch = _with_reference(models, batch, section, temperature=temperature)
    proximal_N = _proximal(models, batch, section, temperature=temperature)
    old_values_N = _old_values(models, batch, section)
    scores_B = objective.shaped_scores(batch.scores_B, batch.cut_off_B, section, scale or ScoreScale())
    if section.overlong_penalty:
        scores_B = scores_B - objective.overlong_penalties(batch.lengths_B, section, max_new_tokens=limit)
    penalised_BT, rewards_BT = _rewards(batch, proximal_N, scores_B, section, beta=beta)
    values_BT = None if old_values_N is None else batch.rectangle(old_values_N)
    is_learned_B = ~batch.cut_off_B if section.mask_cut_off else torch.ones_like(batch.cut_off_B)
    rewarded = RewardedTokens(rewards_BT, batch.mask_BT, scores_B, batch.groups_B, values_BT, is_learned_B)
    estimate = ESTIMATORS[section.estimator](rewarded, section)
    values = None
    if old_values_N is not None and estimate.returns_N is not None:
        width = section.value_clip_range * float(estimate.returns_N.std(unbiased=False))
        values = ValueTargets(old_values_N, estimate.returns_N, width)
    learned = tuple(is_learned_B.nonzero().flatten().tolist())
    if section.loss in OF_PAIRS:
        learned = pairs(batch.rectangle(estimate.advantages_N)[:, 0])
    prepared = PreparedBatch(
        batch=batch,
        old_logprobs_N=proximal_N,
        behaviour_weights_N=_behaviour_weights(batch, proximal_N, section),
        advantages_N=estimate.advantages_N,
        values=values,
        learned=learned,
        kl_coefficient=beta,
        has_kl_loss=section.kl_in == "loss",
        max_new_tokens=limit,
    )
    return prepared, rollout_figures(prepared, scores_B, penalised_BT, section)


def _rewards(
    batch: RolloutBatch, proximal_N: Tensor, scores_B: Tensor, section: PpoSection, *, beta: float
) -> tuple[Tensor, Tensor]:
    """Return the rewards [B, T] with the KL penalty, for the figures, and those that advantages are of."""
    penalty_N = objective.penalty_kl(proximal_N, batch.reference_N, estimator=section.kl_estimator)
    penalty_BT = batch.rectangle(penalty_N)
    penalised_BT = objective.penalised_rewards(penalty_BT, scores_B, batch.lengths_B, coefficient=beta)
    rewards_BT = penalised_BT
    if section.kl_in == "loss":
        nothing_BT = torch.zeros_like(penalty_BT)
        rewards_BT = objective.penalised_rewards(nothing_BT, scores_B, batch.lengths_B, coefficient=0.0)
    if section.whiten_rewards:
        rewards_BT = batch.rectangle(objective.whiten(rewards_BT[batch.mask_BT], shift_mean=False))
    return penalised_BT, rewards_BT


def _behaviour_weights(batch: RolloutBatch, proximal_N: Tensor, section: PpoSection) -> Tensor:
    """Return π_prox/π_behav of each token [N] as `behaviour_weight` of the section limits it."""
    low, high = section.min_behaviour_weight, section.max_behaviour_weight
    if section.behaviour_weight == "mask":
        return objective.masked_weights(proximal_N, batch.behaviour_N, low=low, high=high)
    if section.behaviour_weight == "mask_sequences":
        rows_N = batch.per_token(torch.arange(len(batch.sequences), device=batch.lengths_B.device))
        return objective.sequence_masked_weights(proximal_N, batch.behaviour_N, rows_N, low=low, high=high)
    return objective.behaviour_weights(proximal_N, batch.behaviour_N, limit=high)


def _with_reference(
    models: ActorCritic, batch: RolloutBatch, section: PpoSection, *, temperature: float
) -> RolloutBatch:
    """Return the batch with log π_ref of the rollouts that came without it.

    Raises:
        ConfigError: if the policy does not contain its reference.
    """
    missing_N = batch.reference_N.isnan()
    if not missing_N.any():
        return batch
    rows = torch.split(missing_N, batch.lengths_B.tolist())
    computed_N = _for_each(
        models,
        batch,
        [index for index, row in enumerate(rows) if row.any()],
        lambda padded: models.reference_logprobs(padded, temperature=temperature),
        max_tokens=section.max_micro_batch_tokens,
    )
    return replace(batch, reference_N=torch.where(missing_N, computed_N, batch.reference_N))


def _proximal(models: ActorCritic, batch: RolloutBatch, section: PpoSection, *, temperature: float) -> Tensor:
    """Return log π_prox [N]: computed for stale rollouts, else the recorded log π_behaviour.

    With `proximal_logprobs = "all"`, it is computed for every rollout; for losses of pairs, which do not use
    it, for none.
    """
    if section.loss in OF_PAIRS:
        return batch.behaviour_N
    is_computed = batch.stale_B | (section.proximal_logprobs == "all")
    computed = [index for index, wanted in enumerate(is_computed.tolist()) if wanted]
    if not computed:
        return batch.behaviour_N
    computed_N = _for_each(
        models,
        batch,
        computed,
        lambda padded: models.logprobs(padded, temperature=temperature),
        max_tokens=section.max_micro_batch_tokens,
    )
    return torch.where(batch.per_token(is_computed), computed_N, batch.behaviour_N)


def _old_values(models: ActorCritic, batch: RolloutBatch, section: PpoSection) -> Tensor | None:
    """Return the values [N] of the critic before the first step; None without a critic."""
    if not section.has_critic:
        return None
    return _for_each(
        models, batch, range(len(batch.sequences)), models.values, max_tokens=section.max_micro_batch_tokens
    )


def _for_each(
    models: ActorCritic,
    batch: RolloutBatch,
    members: Sequence[int],
    compute: Callable[[PaddedSequences], Tensor],
    *,
    max_tokens: int,
) -> Tensor:
    """Return what `compute` gives for each response token [N] of some rollouts, on all ranks; else 0."""
    found_N = torch.zeros_like(batch.behaviour_N)
    for padded, where in micro_batches(batch, members, max_tokens=max_tokens, group=models.group):
        found_N[where] = compute(padded)
    return collectives.combined(found_N, models.group)


def optimise(
    models: ActorCritic,
    prepared: PreparedBatch,
    section: PpoSection,
    *,
    temperature: float,
    seed: int,
    update: int,
    demonstrations: DemonstrationStream | None = None,
) -> dict[str, float]:
    """Train for some epochs over the batch, each in a new permutation, with one step per mini-batch.

    With a loss of pairs, pairs are permuted, and a mini-batch has as many answers.

    Returns the figures: losses, clip fraction, gradient norms and the number of skipped steps; and, over the
    first mini-batch before the first step, entropy, the mean ratio and |log π_trainer − log π_behaviour|. If
    nothing can be learnt, there is no step and there are no such figures.

    Raises:
        NotFinite: if too many steps in a row were skipped.
    """
    learning_rate = models.set_learning_rates(update)
    with_policy = update >= section.critic_warmup_updates
    sums: defaultdict[str, float] = defaultdict(float)
    first: dict[str, float] = {}
    together = section.answers_per_loss
    count = len(prepared.learned) // together
    if not count:
        return {"skipped_steps": 0.0, "lr": learning_rate}
    for epoch in range(section.epochs):
        order = permutation(count, seed, "mini_batches", update, epoch)
        size = section.mini_batch_size // together
        for start in range(0, count, size):
            units = [together * index for index in order[start : start + size]]
            members = [index for unit in units for index in prepared.learned[unit : unit + together]]
            figures = accumulate_gradients(
                models,
                prepared,
                members,
                section,
                temperature=temperature,
                with_policy=with_policy,
                entropies=not first,
            )
            if demonstrations is not None and with_policy:
                drawn = demonstrations.take(section.ptx_batch_size)
                figures["ptx_loss"] = accumulate_ptx_gradients(models, drawn, section)
            first = first or figures
            figures |= models.step(figures, where=f"update {update + 1}", with_policy=with_policy)
            figures["steps"] = 1.0
            for name, value in figures.items():
                sums[name] += value
    steps = sums.pop("steps")
    return (
        {name: sums[name] / steps for name in _OF_EVERY_STEP if name in sums}
        | {"skipped_steps": sums["skipped_steps"]}
        | {name: first[name] for name in _OF_THE_FIRST_STEP if name in first}
        | {"ratio_first": first["ratio"], "lr": learning_rate}
    )


def accumulate_gradients(
    models: ActorCritic,
    prepared: PreparedBatch,
    members: Sequence[int],
    section: PpoSection,
    *,
    temperature: float,
    with_policy: bool = True,
    entropies: bool = True,
) -> dict[str, float]:
    """Add the gradients of one mini-batch, micro-batch by micro-batch; return its figures.

    Each rank takes its share of the rollouts; the figures are those of all ranks. The losses of the policy
    are aggregated as the section says, other figures are means over tokens. Without `with_policy` only the
    critic gets a gradient.

    The mismatch is measured on tokens that were sampled by these weights according to their version; it is
    left out if there are none. The entropy, which costs a pass over the logits, is left out without
    `entropies`.
    """
    batch = prepared.batch
    lengths = [batch.sequences[index].response_length for index in members]
    total_tokens = sum(lengths)
    aggregation = Aggregation.of(section.aggregation, lengths, max_new_tokens=prepared.max_new_tokens)
    sums: defaultdict[str, float] = defaultdict(float)
    mismatches: list[Tensor] = []
    stale_N = batch.per_token(batch.stale_B)
    for padded, where in micro_batches(
        batch,
        members,
        max_tokens=section.max_micro_batch_tokens,
        group=models.group,
        together=section.answers_per_loss,
    ):
        old_N = prepared.old_logprobs_N[where]
        with torch.set_grad_enabled(with_policy):
            logprobs_N, more = _logprobs(models, padded, temperature=temperature, entropies=entropies)
        losses = LOSSES[section.loss](_loss_tokens(prepared, where, logprobs_N, padded), section)
        loss, parts = _policy_loss(prepared, where, logprobs_N, losses.loss_N, aggregation)
        if with_policy:
            memory.backward(loss / aggregation.divisor)
        for name, value in (more | parts | _sums(losses, old_N, logprobs_N)).items():
            sums[name] += value
        if prepared.values is not None:
            value_loss_N = _value_loss(models, prepared.values, padded, where)
            memory.backward(value_loss_N.sum() / total_tokens)
            sums["value_loss"] += float(value_loss_N.detach().sum())
        mismatches.append((logprobs_N.detach() - batch.behaviour_N[where]).abs()[~stale_N[where]])
    divisors = dict.fromkeys(("policy_loss", "kl_loss"), aggregation.divisor)
    divisors |= dict.fromkeys(FIGURES_OF_PAIRS, len(members) / 2)
    figures = {
        name: value / divisors.get(name, total_tokens)
        for name, value in collectives.summed(sums, models.group).items()
    }
    mismatch_N = collectives.concatenated(torch.cat(mismatches), models.group)
    if len(mismatch_N):
        figures |= {"mismatch_mean": float(mismatch_N.mean()), "mismatch_max": float(mismatch_N.max())}
    return figures


def _logprobs(
    models: ActorCritic, padded: PaddedSequences, *, temperature: float, entropies: bool
) -> tuple[Tensor, dict[str, float]]:
    """Return the log-probs of a micro-batch, and the sum of the entropies if it is wanted."""
    if not entropies:
        return models.logprobs(padded, temperature=temperature), {}
    logprobs_N, entropies_N = models.logprobs_and_entropies(padded, temperature=temperature)
    return logprobs_N, {"entropy": float(entropies_N.sum())}


@torch.no_grad()
def _sums(losses: TokenLosses, old_N: Tensor, logprobs_N: Tensor) -> dict[str, float]:
    """Return the figures of a micro-batch before the division."""
    return {
        "clip_fraction": float(losses.is_clipped_N.sum()),
        "ratio": float(losses.ratios_N.sum()),
        "policy_kl": float(objective.k3(old_N, logprobs_N).sum()),
        **losses.of_pairs,
    }


def _loss_tokens(
    prepared: PreparedBatch, where: Tensor, logprobs_N: Tensor, padded: PaddedSequences
) -> LossTokens:
    """Return what a loss reads of the tokens of a micro-batch."""
    return LossTokens(
        logprobs_N,
        prepared.old_logprobs_N[where],
        prepared.advantages_N[where],
        padded.rows_N,
        prepared.batch.reference_N[where],
        prepared.kl_coefficient,
    )


def _policy_loss(
    prepared: PreparedBatch, where: Tensor, logprobs_N: Tensor, loss_N: Tensor, aggregation: Aggregation
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a micro-batch before the division, with the KL loss if there is one, and both parts
    for the figures.

    Args:
        prepared: the batch of the update.
        where: the tokens of the micro-batch in it.
        logprobs_N: log π_θ of these tokens, with gradient.
        loss_N: their loss by the section's loss.
        aggregation: that of the optimizer step.
    """
    batch = prepared.batch
    lengths_N = batch.per_token(batch.lengths_B)[where]
    weights_N = prepared.behaviour_weights_N[where]
    total = aggregation.total(weights_N * loss_N, lengths_N)
    parts = {"policy_loss": float(total.detach())}
    if prepared.has_kl_loss and prepared.kl_coefficient:
        kl_N = objective.kl_loss(logprobs_N, prepared.old_logprobs_N[where], batch.reference_N[where])
        kl = aggregation.total(weights_N * kl_N, lengths_N)
        parts["kl_loss"] = float(kl.detach())
        total = total + prepared.kl_coefficient * kl
    return total, parts


def _value_loss(models: ActorCritic, values: ValueTargets, padded: PaddedSequences, where: Tensor) -> Tensor:
    return objective.value_loss(
        models.values(padded),
        values.old_values_N[where],
        values.returns_N[where],
        clip_width=values.clip_width,
    )


def accumulate_ptx_gradients(
    models: ActorCritic, demonstrations: Sequence[TokenSequence], section: PpoSection
) -> float:
    """Add the gradient of γ · cross-entropy, the mean over all response tokens of the demonstrations.

    Returns the cross-entropy in nats per token.
    """
    total_tokens = sum(demonstration.response_length for demonstration in demonstrations)
    total_loss = 0.0
    for _, padded in divided.padded(
        demonstrations, models.device, max_tokens=section.max_micro_batch_tokens, group=models.group
    ):
        logprobs_N = models.logprobs(padded, temperature=1.0)
        part = -logprobs_N.sum() / total_tokens
        memory.backward(section.ptx_coefficient * part)
        total_loss += float(part.detach())
    return collectives.summed({"loss": total_loss}, models.group)["loss"]
