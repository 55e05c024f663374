"""Several reward models that are served as one: a folder of members, and what becomes of their scores.

The trainer writes the folder, the reward service reads it. A single model is an ensemble of one.

Shapes: M members, B sequences.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from fairlead.config.serving import RewardSection
from fairlead.errors import ModelLoadError
from fairlead.nn.loading import load_tokenizer, tokenizer_fingerprint, weights_digest
from fairlead.nn.reward_model import RewardModel, load_reward_model

FILE = "ensemble.json"
"""Makes a folder an ensemble: `{"members": ["member-0", …]}`, folders beside it; it may have a `temperature`,
and then the rule that it was fitted for."""


@dataclass(frozen=True, slots=True)
class RewardEnsemble:
    """Reward models and the rule that makes one score of theirs."""

    members: tuple[RewardModel, ...]
    """At least one."""
    rule: str = "mean"
    """`mean`, `min` or `mean_minus_std`."""
    std_weight: float = 1.0
    """λ of `mean_minus_std`."""
    temperature: float = 0.0
    """What scores are divided by to be calibrated; 0 if nobody has measured it for this rule."""

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


@dataclass(frozen=True, slots=True)
class EnsembleTemperature:
    """What an ensemble's scores are divided by to be calibrated: of one rule, and of no other."""

    temperature: float
    """The divisor."""
    rule: str
    """The rule that it was fitted for."""
    std_weight: float
    """λ of `mean_minus_std` then."""


def write_members(folder: Path, count: int, *, temperature: EnsembleTemperature | None = None) -> list[Path]:
    """Makes a folder an ensemble of `count`; returns the folders to save the members in."""
    names = [f"member-{number}" for number in range(count)]
    content: dict[str, object] = {"members": names}
    if temperature is not None:
        content |= asdict(temperature)
    (folder / FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def temperature_of(path: str) -> EnsembleTemperature | None:
    """The temperature of an ensemble's folder; None if it has none, or is no ensemble.

    Raises:
        ModelLoadError: it is none that can be.
    """
    file = Path(path).expanduser() / FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if "temperature" not in content:
            return None
        found = EnsembleTemperature(
            float(content["temperature"]), str(content["rule"]), float(content["std_weight"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{file} has no temperature with its rule: {error!r}") from error
    if not 0 < found.temperature < float("inf"):
        raise ModelLoadError(f"{file}: temperature: got {found.temperature}, allowed: a positive number")
    return found


def load_ensemble(path: str, section: RewardSection) -> RewardEnsemble:
    """The reward model or the ensemble in a folder, with the section's rule.

    Raises:
        ModelLoadError: a member cannot be loaded, or has another tokenizer than the first.
    """
    paths = member_paths(path)
    members = tuple(load_reward_model(member, section) for member in paths)
    if len(paths) > 1 and len({tokenizer_fingerprint(load_tokenizer(member)) for member in paths}) > 1:
        raise ModelLoadError(f"the members of {path!r} have different tokenizers")
    rule, weight = section.ensemble, section.ensemble_std_weight
    temperature = members[0].temperature if len(members) == 1 else 0.0
    told = temperature_of(path)
    fits = told is not None and told.rule == rule and (rule != "mean_minus_std" or told.std_weight == weight)
    if told is not None and fits:
        temperature = told.temperature
    return RewardEnsemble(members, rule=rule, std_weight=weight, temperature=temperature)
