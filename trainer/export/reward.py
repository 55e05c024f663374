"""The reward model of a run as it is exported: a folder that AutoModelForSequenceClassification loads.

transformers reads the score at the last token that is not the padding's. Where a tokenizer pads with its EOS
that is the wrong one, so the exported folder pads with another token, or with none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from fairlead.config import RunFolder
from fairlead.config.base import ComputeSection
from fairlead.nn.ensemble import EnsembleTemperature, member_paths, temperature_of, write_members
from fairlead.nn.loading import load_tokenizer
from fairlead.nn.reward_model import RewardModel, load_reward_model

_EXACT = ComputeSection(device="cpu")


@dataclass(frozen=True, slots=True)
class ExportedRewardModel:
    """The reward models that a run has trained, in float32."""

    members: tuple[RewardModel, ...]
    """One, or those of an ensemble."""
    tokenizer: PreTrainedTokenizerBase
    """Of all members; pads with something else than its EOS, or not at all."""
    temperature: EnsembleTemperature | None
    """Of an ensemble; a single model has its own in its configuration."""


def read(folder: RunFolder) -> ExportedRewardModel | None:
    """What the run has trained; None if it has trained none.

    Raises:
        ModelLoadError: if a member cannot be loaded.
    """
    if not folder.reward_model.is_dir():
        return None
    paths = member_paths(str(folder.reward_model))
    tokenizer = load_tokenizer(paths[0])
    tokenizer.pad_token = padding_token(tokenizer)
    members = tuple(load_reward_model(path, _EXACT) for path in paths)
    return ExportedRewardModel(members, tokenizer, temperature_of(str(folder.reward_model)))


def save(rewards: ExportedRewardModel, folder: Path, *, dtype: torch.dtype) -> list[Path]:
    """Writes one folder, or an ensemble's; returns the folders of the members."""
    count = len(rewards.members)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder] if count == 1 else write_members(folder, count, temperature=rewards.temperature)
    for member, path in zip(rewards.members, paths, strict=True):
        member.model.config.pad_token_id = rewards.tokenizer.pad_token_id
        nn.Module.to(member.model, dtype)
        member.save(path, rewards.tokenizer)
    return paths


def padding_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A token of the tokenizer to pad with that ends no text; None if it has none to spare."""
    known = [tokenizer.pad_token, *(t for t in tokenizer.all_special_tokens if "pad" in t.lower())]
    known += [
        token.content for token in tokenizer.added_tokens_decoder.values() if "pad" in token.content.lower()
    ]
    known += [tokenizer.unk_token]
    taken = {tokenizer.eos_token, tokenizer.bos_token, None}
    return next((str(token) for token in known if token not in taken), None)
