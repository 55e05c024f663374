"""Several reward models that are served as one: a folder of members, and what becomes of their scores.

The trainer writes the folder, the reward service reads it. A single model is an ensemble of one.

Shapes: M members, B sequences.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fairlead.config.reward import RewardSection
from fairlead.errors import ModelLoadError
from fairlead.nn.loading import load_tokenizer, tokenizer_fingerprint, weights_digest
from fairlead.nn.reward_model import RewardModel, load_reward_model

FILE = "ensemble.json"
"""Makes a folder an ensemble: `{"members": ["member-0", …]}`, folders beside it."""


@dataclass(frozen=True, slots=True)
class RewardEnsemble:
    """Reward models and the rule that makes one score of theirs."""

    members: tuple[RewardModel, ...]
    """At least one."""
    rule: str = "mean"
    """`mean`, `min` or `mean_minus_std`."""
    std_weight: float = 1.0
    """λ of `mean_minus_std`."""

    @property
    def device(self) -> torch.device:
        """Where its members compute."""
        return self.members[0].device

    def scores(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Score [B] of each right-padded row; arguments as in `RewardModel.scores`."""
        scores_MB = torch.stack([member.scores(tokens_BT, lengths_B) for member in self.members])
        return combine(scores_MB, rule=self.rule, std_weight=self.std_weight)

    @property
    def version(self) -> str:
        """A digest over the weights of all members, and over the rule where there are several."""
        parts = [f"{weights_digest(member.model)} {member.head.bias.item()}" for member in self.members]
        if len(parts) > 1:
            parts.append(f"{self.rule} {self.std_weight}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def combine(scores_MB: Tensor, *, rule: str, std_weight: float) -> Tensor:
    """One score [B] of those of the members (Coste et al. 2023, section 3; std of the M, not of M − 1)."""
    if rule == "min":
        return scores_MB.min(dim=0).values
    mean_B = scores_MB.mean(dim=0)
    return mean_B if rule == "mean" else mean_B - std_weight * scores_MB.std(dim=0, correction=0)


def member_paths(path: str) -> list[str]:
    """Paths of the models in a folder: its members, or itself if it is no ensemble (hub ids never are).

    Raises:
        ModelLoadError: the folder's list of members is damaged.
    """
    file = Path(path).expanduser() / FILE
    if not file.is_file():
        return [path]
    try:
        members = json.loads(file.read_text(encoding="utf-8"))["members"]
        found = [str(file.parent / str(member)) for member in members]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{file} is no list of members: {error!r}") from error
    if not found:
        raise ModelLoadError(f"{file} names no members")
    return found


def write_members(folder: Path, count: int) -> list[Path]:
    """Makes a folder an ensemble of `count`; returns the folders to save the members in."""
    names = [f"member-{number}" for number in range(count)]
    (folder / FILE).write_text(json.dumps({"members": names}) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def load_ensemble(path: str, section: RewardSection) -> RewardEnsemble:
    """The reward model or the ensemble in a folder, with the section's rule.

    Raises:
        ModelLoadError: a member cannot be loaded, or has another tokenizer than the first.
    """
    paths = member_paths(path)
    members = tuple(load_reward_model(member, section) for member in paths)
    if len(paths) > 1 and len({tokenizer_fingerprint(load_tokenizer(member)) for member in paths}) > 1:
        raise ModelLoadError(f"the members of {path!r} have different tokenizers")
    return RewardEnsemble(members, rule=section.ensemble, std_weight=section.ensemble_std_weight)
