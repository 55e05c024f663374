"""Training the reward model on comparisons, from the SFT model with a new scalar head.

Reads rankings and pairs, writes a model folder (or that of an ensemble) which the reward service loads. Knows
nothing about services or the queue.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from fairlead.config import RunConfig
from fairlead.data.records import load_preferences
from fairlead.errors import ConfigError, FairleadError
from fairlead.metrics import TrainerMetrics
from fairlead.nn.ensemble import EnsembleTemperature, RewardEnsemble, write_members
from fairlead.nn.loading import (
    check_vocabulary,
    load_tokenizer,
    max_sequence_tokens,
    set_threads,
    torch_dtype,
)
from fairlead.nn.reward_model import RewardModel, load_reward_model
from trainer import durable, memory, optim, seeds
from trainer.results import config_hash
from trainer.reward_model import calibration, data, loss
from trainer.reward_model.evaluate import (
    baseline_accuracies,
    demonstration_sequences,
    evaluate,
    intervals,
    margins_by_prompt,
    mean_score,
    score_quantiles,
    shift,
    summary,
)
from trainer.tracking import Tracker

logger = logging.getLogger(__name__)

Result = dict[str, float | str | list[float] | dict[str, dict[str, float]]]


def train(config: RunConfig, metrics: TrainerMetrics | None = None) -> Result:
    """Train, write the model folder and the result, and return the result.

    Raises:
        ConfigError: if there are no comparisons.
        ModelLoadError: if the initial model cannot be loaded.
    """
    begun = time.monotonic()
    section = config.reward_model
    set_threads(section)
    path = section.path or str(config.folder.sft_model)
    preferences = load_preferences(config)
    tokenizer = load_tokenizer(path)
    members = tuple(_fresh(config, path, member) for member in range(section.ensemble_size))
    check_vocabulary(path, members[0].model, tokenizer)
    limit = max_sequence_tokens(members[0].model, section.max_sequence_tokens)
    known = data.encode(preferences.train, tokenizer, max_tokens=limit)
    heldout = data.encode(preferences.heldout, tokenizer, max_tokens=limit)
    if not known.rankings:
        raise ConfigError("data.preferences", got="no comparisons", allowed="at least one to train on")
    if known.truncated:
        logger.warning(
            "%d responses are longer than %d tokens; their prompts were cut", known.truncated, limit
        )
    if known.skipped:
        logger.warning("%d rankings were left out: all their responses are tied", known.skipped)
    train_loss = _epochs(config, members, known.rankings, heldout.rankings, metrics)
    centred = _centre(config, members, tokenizer, limit)
    figures, temperature = _figures(config, members, known.rankings, heldout.rankings)
    with durable.new_folder(config.folder.reward_model) as folder:
        _save(config, folder, members, tokenizer, temperature)
    result: Result = {
        **figures,
        **centred,
        **_counts(known, heldout),
        "train_loss": train_loss,
        "seconds": time.monotonic() - begun,
        "epochs": section.epochs,
        "ensemble_size": section.ensemble_size,
        "config_hash": config_hash("reward_model", config),
    }
    durable.write_json(config.folder.result("reward_model"), result)
    pairs = result["heldout_comparisons"]
    logger.info("reward_model: held-out accuracy %.4f of %d pairs", result["accuracy"], pairs)
    return result


def _fresh(config: RunConfig, path: str, member: int) -> RewardModel:
    # Weights stay float32; the body computes in `dtype`.
    section = config.reward_model.model_copy(update={"dtype": "float32"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(config.seed, "reward_head", *([member] if member else [])))
        reward = load_reward_model(path, section, fresh_head=True)
    if section.gradient_checkpointing:
        memory.recompute_blocks(reward.body, field="reward_model")
    return reward


def _epochs(
    config: RunConfig,
    members: Sequence[RewardModel],
    rankings: Sequence[data.EncodedRanking],
    heldout: Sequence[data.EncodedRanking],
    metrics: TrainerMetrics | None,
) -> float:
    """Train one member after the other; return the mean loss of their last epochs."""
    section = config.reward_model
    steps = section.epochs * math.ceil(len(rankings) / section.batch_size)
    total = steps * len(members)
    last = 0.0
    with Tracker(
        "reward_model", config.folder, total=total, tensorboard=config.observe.tensorboard, metrics=metrics
    ) as tracker:
        for number, model in enumerate(members):
            optimizer = optim.adamw(
                model.parameters(), learning_rate=section.learning_rate, weight_decay=section.weight_decay
            )
            train_loss = float("nan")
            for epoch in range(section.epochs):
                tracker.phase("train")
                train_loss = _epoch(
                    config, model, rankings, optimizer, tracker, (number, epoch, number * steps)
                )
                if not math.isfinite(train_loss):
                    raise FairleadError(
                        f"reward_model: the loss is {train_loss}: lower reward_model.learning_rate"
                    )
                tracker.phase("evaluate")
                if heldout:
                    figures = evaluate(
                        model,
                        heldout,
                        max_tokens=section.max_micro_batch_tokens,
                        dtype=torch_dtype(section),
                    )
                    tracker.record(
                        tracker.step, {f"heldout_{name}": value for name, value in figures.items()}
                    )
            last += train_loss / len(members)
        tracker.phase("done")
    return last


def _epoch(
    config: RunConfig,
    model: RewardModel,
    rankings: Sequence[data.EncodedRanking],
    optimizer: torch.optim.Optimizer,
    tracker: Tracker,
    place: tuple[int, int, int],
) -> float:
    """Train for one epoch; return the mean loss.

    `place` is the member, the epoch, and the number of steps of the members before.
    """
    section = config.reward_model
    member, epoch, before = place
    parameters = model.parameters()
    per_epoch = math.ceil(len(rankings) / section.batch_size)
    total = section.epochs * per_epoch
    seen: list[float] = []
    for indices in data.batches(
        len(rankings), size=section.batch_size, seed=config.seed, epoch=epoch, member=member
    ):
        step = epoch * per_epoch + len(seen)
        factor = optim.warmup_then_linear(step, total=total, warmup_fraction=section.warmup_fraction)
        optim.set_learning_rate(optimizer, section.learning_rate * factor)
        step_loss = 0.0
        for part in loss.micro_batch_losses(
            model,
            [rankings[index] for index in indices],
            max_tokens=section.max_micro_batch_tokens,
            dtype=torch_dtype(section),
        ):
            part.backward()  # type: ignore[no-untyped-call]
            step_loss += float(part.detach())
        norm = optim.clipped_step(optimizer, parameters, max_norm=section.max_gradient_norm)
        seen.append(step_loss)
        figures = {"loss": step_loss, "gradient_norm": norm, "epoch": epoch + 1, "member": member}
        tracker.record(before + step + 1, figures)
    return sum(seen) / len(seen)


def _centre(
    config: RunConfig, members: Sequence[RewardModel], tokenizer: PreTrainedTokenizerBase, limit: int
) -> dict[str, float]:
    """Shift every member so that demonstrations score 0 on average; return their mean scores afterwards."""
    sequences = demonstration_sequences(config, tokenizer, max_tokens=limit)
    if sequences is None:
        return {}
    budget = config.reward_model.max_micro_batch_tokens
    dtype = torch_dtype(config.reward_model)
    for model in members:
        shift(model, -mean_score(model, sequences.train, max_tokens=budget, dtype=dtype))
    served = _served(config, members)
    return {
        "demonstrations_mean": mean_score(served, sequences.train, max_tokens=budget, dtype=dtype),
        "heldout_demonstrations_mean": mean_score(served, sequences.heldout, max_tokens=budget, dtype=dtype),
    }


def _served(config: RunConfig, members: Sequence[RewardModel]) -> RewardEnsemble:
    reward = config.reward
    return RewardEnsemble(tuple(members), rule=reward.ensemble, std_weight=reward.ensemble_std_weight)


def _save(
    config: RunConfig,
    folder: Path,
    members: Sequence[RewardModel],
    tokenizer: PreTrainedTokenizerBase,
    temperature: float | None,
) -> None:
    paths = [folder]
    if len(members) > 1:
        rule = config.reward.ensemble
        weight = config.reward.ensemble_std_weight
        fitted = None if temperature is None else EnsembleTemperature(temperature, rule, weight)
        paths = write_members(folder, len(members), temperature=fitted)
    for model, path in zip(members, paths, strict=True):
        # An ensemble has one temperature for all members.
        model.set_temperature(temperature if len(members) == 1 else None)
        model.save(path, tokenizer)


def _figures(
    config: RunConfig,
    members: Sequence[RewardModel],
    rankings: Sequence[data.EncodedRanking],
    heldout: Sequence[data.EncodedRanking],
) -> tuple[Result, float | None]:
    """Return the figures of the served model on held-out prompts, and its calibration temperature."""
    budget = config.reward_model.max_micro_batch_tokens
    dtype = torch_dtype(config.reward_model)
    served = _served(config, members)
    margins, losses = margins_by_prompt(served, heldout, max_tokens=budget, dtype=dtype)
    flat = [margin for group in margins.values() for margin in group]
    temperature = calibration.fit_temperature(flat)
    found: Result = {
        **summary(flat, losses),
        "temperature": float("nan") if temperature is None else temperature,
        "ece_calibrated": calibration.calibrated_error(margins),
        **intervals(margins, seed=config.seed),
        "score_quantiles": score_quantiles(served, rankings, max_tokens=budget, dtype=dtype),
        "baselines": baseline_accuracies(rankings, heldout),
    }
    if len(members) > 1:
        found["member_accuracies"] = [
            evaluate(member, heldout, max_tokens=budget, dtype=dtype)["accuracy"] for member in members
        ]
    if temperature is None:
        logger.warning("no calibration temperature: %d held-out pairs do not determine one", len(flat))
    return found, temperature


def _counts(known: data.EncodedComparisons, heldout: data.EncodedComparisons) -> dict[str, float]:
    both = (*known.rankings, *heldout.rankings)
    return {
        "comparisons": sum(len(ranking.pairs) for ranking in known.rankings),
        "rankings": len(known.rankings),
        "heldout_comparisons": sum(len(ranking.pairs) for ranking in heldout.rankings),
        "heldout_prompts": len({ranking.prompt for ranking in heldout.rankings}),
        "prompts": len({ranking.prompt for ranking in both}),
        "responses": sum(len(ranking.sequences) for ranking in both),
        "ties": known.ties + heldout.ties,
        "skipped": known.skipped + heldout.skipped,
        "truncated": known.truncated,
    }
