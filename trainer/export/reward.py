"""Export of a run's reward model: writes a folder that AutoModelForSequenceClassification loads.

transformers reads the score at the last token that is not padding. If a tokenizer pads with its EOS, that is
the wrong token, so the exported tokenizer pads with another one, or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from fairlead.config import RunFolder
from fairlead.config.base import ComputeSection
from fairlead.data.control import trained_end
from fairlead.nn.ensemble import EnsembleTemperature, member_paths, temperature_of, write_members
from fairlead.nn.loading import load_tokenizer
from fairlead.nn.reward_model import RewardModel, load_reward_model

_EXACT = ComputeSection(device="cpu")


@dataclass(frozen=True, slots=True)
class ExportedRewardModel:
    """The reward model of a run, or its ensemble, in float32."""

    members: tuple[RewardModel, ...]
    """The model, or the members of the ensemble."""
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer of all members; pads with a token other than EOS, or not at all."""
    temperature: EnsembleTemperature | None
    """Calibration temperature of an ensemble; that of a single model is in its configuration."""


def read(folder: RunFolder) -> ExportedRewardModel | None:
    """Read the reward model of a run; None if it has not trained one.

    Raises:
        ModelLoadError: if a member cannot be loaded.
    """
    if not folder.reward_model.is_dir():
        return None
    paths = member_paths(str(folder.reward_model))
    tokenizer = load_tokenizer(paths[0])
    tokenizer.pad_token = padding_token(tokenizer)
    members = tuple(load_reward_model(path, _EXACT) for path in paths)
    for member in members:
        if member.answer_end is None:
            member.set_answer_end(trained_end(tokenizer))
    return ExportedRewardModel(members, tokenizer, temperature_of(str(folder.reward_model)))


def save(rewards: ExportedRewardModel, folder: Path, *, dtype: torch.dtype) -> list[Path]:
    """Write the folder of the model or of the ensemble; return the folders of the members."""
    count = len(rewards.members)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder] if count == 1 else write_members(folder, count, temperature=rewards.temperature)
    for member, path in zip(rewards.members, paths, strict=True):
        member.model.config.pad_token_id = rewards.tokenizer.pad_token_id
        nn.Module.to(member.model, dtype)
        member.save(path, rewards.tokenizer)
    return paths


def padding_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a token to pad with that is not EOS or BOS; None if the tokenizer has no spare one."""
    known = [tokenizer.pad_token, *(t for t in tokenizer.all_special_tokens if "pad" in t.lower())]
    known += [
        token.content for token in tokenizer.added_tokens_decoder.values() if "pad" in token.content.lower()
    ]
    known += [tokenizer.unk_token]
    taken = {tokenizer.eos_token, tokenizer.bos_token, None}
    return next((str(token) for token in known if token not in taken), None)
