"""What follows the last step of the reward model: centre its scores, measure it, write its folder.

Called by `train` for one model or the members of an ensemble. Does not change the weights of the body.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fairlead.config import RunConfig
from fairlead.data.control import trained_end
from fairlead.nn.ensemble import EnsembleTemperature, RewardEnsemble, write_members
from fairlead.nn.loading import torch_dtype
from fairlead.nn.reward_model import RewardModel
from trainer import calibration
from trainer.rankings import EncodedRanking
from trainer.reward_model.evaluate import (
    baseline_accuracies,
    demonstration_sequences,
    evaluate,
    intervals,
    margins_by_prompt,
    mean_score,
    score_spread,
    shift,
    summary,
)
from trainer.tracking import Doing

logger = logging.getLogger(__name__)

Result = dict[str, float | str | list[float] | dict[str, dict[str, float]]]
"""The content of result_reward_model.json."""


def centre(
    config: RunConfig,
    members: Sequence[RewardModel],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    doing: Doing,
) -> dict[str, float]:
    """Shift every member so that demonstrations score 0 on average; return their mean scores afterwards."""
    sequences = demonstration_sequences(config, tokenizer, max_tokens=limit)
    if sequences is None:
        return {}
    mean = partial(
        mean_score,
        max_tokens=config.reward_model.max_micro_batch_tokens,
        dtype=torch_dtype(config.reward_model),
        doing=doing,
    )
    for model in members:
        shift(model, -mean(model, sequences.train))
    served = _served(config, members)
    return {
        "demonstrations_mean": mean(served, sequences.train),
        "heldout_demonstrations_mean": mean(served, sequences.heldout),
    }


def _served(config: RunConfig, members: Sequence[RewardModel]) -> RewardEnsemble:
    reward = config.reward
    return RewardEnsemble(tuple(members), rule=reward.ensemble, std_weight=reward.ensemble_std_weight)


def save(
    config: RunConfig,
    folder: Path,
    members: Sequence[RewardModel],
    tokenizer: PreTrainedTokenizerBase,
    temperature: float | None,
) -> None:
    """Write the model, or the members of an ensemble, with its temperature and the end of answers."""
    paths = [folder]
    if len(members) > 1:
        rule = config.reward.ensemble
        weight = config.reward.ensemble_std_weight
        fitted = None if temperature is None else EnsembleTemperature(temperature, rule, weight)
        paths = write_members(folder, len(members), temperature=fitted)
    for model, path in zip(members, paths, strict=True):
        # An ensemble has one temperature for all members.
        model.set_temperature(temperature if len(members) == 1 else None)
        model.set_answer_end(trained_end(tokenizer))
        model.save(path, tokenizer, merge=config.reward_model.lora.merge)


def measure(
    config: RunConfig,
    members: Sequence[RewardModel],
    rankings: Sequence[EncodedRanking],
    heldout: Sequence[EncodedRanking],
    doing: Doing,
) -> tuple[Result, float | None]:
    """Return the figures of the served model on held-out prompts, and its calibration temperature.

    The deviation of its scores is set in every member.
    """
    budget = config.reward_model.max_micro_batch_tokens
    dtype = torch_dtype(config.reward_model)
    served = _served(config, members)
    margins, losses = margins_by_prompt(served, heldout, max_tokens=budget, dtype=dtype, doing=doing)
    quantiles, deviation = score_spread(served, rankings, max_tokens=budget, dtype=dtype, doing=doing)
    doing("fitting the calibration and the baselines", 0, 0)
    flat = [margin for group in margins.values() for margin in group]
    temperature = calibration.fit_temperature(flat)
    found: Result = {
        **summary(flat, losses),
        "temperature": float("nan") if temperature is None else temperature,
        "ece_calibrated": calibration.calibrated_error(margins),
        **intervals(margins, seed=config.seed),
        "score_quantiles": quantiles,
        "score_deviation": deviation,
        "baselines": baseline_accuracies(rankings, heldout),
    }
    for model in members:
        model.set_deviation(deviation)
    if len(members) > 1:
        found["member_accuracies"] = [
            evaluate(member, heldout, max_tokens=budget, dtype=dtype, doing=doing)["accuracy"]
            for member in members
        ]
    if temperature is None:
        logger.warning("no calibration temperature: %d held-out pairs do not determine one", len(flat))
    return found, temperature
