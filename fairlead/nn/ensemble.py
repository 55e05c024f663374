"""Ensembles of reward models that are served as one: the folder of members, and the rule that combines
scores.

The trainer writes the folder and the reward service reads it. A single model is an ensemble of one.

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
from fairlead.nn.loading import Loader, load_tokenizer, tokenizer_fingerprint, weights_digest
from fairlead.nn.reward_model import RewardModel, load_reward_model

FILE = "ensemble.json"
"""File that makes a folder an ensemble: `{"members": ["member-0", …]}`, names of subfolders. It may have a
`temperature`, with the rule that it was fitted for."""


@dataclass(frozen=True, slots=True)
class RewardEnsemble:
    """Reward models and the rule that combines their scores."""

    members: tuple[RewardModel, ...]
    """At least one."""
    rule: str = "mean"
    """`mean`, `min` or `mean_minus_std`."""
    std_weight: float = 1.0
    """λ of `mean_minus_std`."""
    temperature: float = 0.0
    """Divisor that calibrates scores; 0 if it was not fitted for this rule."""

    @property
    def device(self) -> torch.device:
        """Device of the members."""
        return self.members[0].device

    def scores(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the score [B] of each right-padded row; arguments as in `RewardModel.scores`."""
        scores_MB = torch.stack([member.scores(tokens_BT, lengths_B) for member in self.members])
        return combine(scores_MB, rule=self.rule, std_weight=self.std_weight)

    @property
    def version(self) -> str:
        """Digest over the weights of all members, and over the rule if there are several."""
        parts = [f"{weights_digest(member.model)} {member.head.bias.item()}" for member in self.members]
        if len(parts) > 1:
            parts.append(f"{self.rule} {self.std_weight}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def combine(scores_MB: Tensor, *, rule: str, std_weight: float) -> Tensor:
    """Combine the members' scores into one [B] (Coste et al. 2023, section 3; std with divisor M)."""
    if rule == "min":
        return scores_MB.min(dim=0).values
    mean_B = scores_MB.mean(dim=0)
    return mean_B if rule == "mean" else mean_B - std_weight * scores_MB.std(dim=0, correction=0)


def member_paths(path: str) -> list[str]:
    """Return the paths of an ensemble's members, or the path itself if it is not an ensemble (hub ids never
    are).

    Raises:
        ModelLoadError: if the folder's list of members is damaged.
    """
    file = Path(path).expanduser() / FILE
    if not file.is_file():
        return [path]
    try:
        members = json.loads(file.read_text(encoding="utf-8"))["members"]
        found = [str(file.parent / str(member)) for member in members]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{file} is not a valid list of members: {error!r}") from error
    if not found:
        raise ModelLoadError(f"{file} lists no members")
    return found


@dataclass(frozen=True, slots=True)
class EnsembleTemperature:
    """The calibration temperature of an ensemble, valid for one rule only."""

    temperature: float
    """The divisor."""
    rule: str
    """The rule that it was fitted for."""
    std_weight: float
    """λ of `mean_minus_std` that it was fitted for."""


def write_members(folder: Path, count: int, *, temperature: EnsembleTemperature | None = None) -> list[Path]:
    """Make a folder an ensemble of `count` members; return the folders to save them in."""
    names = [f"member-{number}" for number in range(count)]
    content: dict[str, object] = {"members": names}
    if temperature is not None:
        content |= asdict(temperature)
    (folder / FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def temperature_of(path: str) -> EnsembleTemperature | None:
    """Return the temperature of an ensemble's folder; None if it has none, or is not an ensemble.

    Raises:
        ModelLoadError: if it is invalid.
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
        raise ModelLoadError(f"{file} is not a valid calibration temperature: {error!r}") from error
    if not 0 < found.temperature < float("inf"):
        raise ModelLoadError(f"{file}: temperature: got {found.temperature}, allowed: a positive number")
    return found


def load_ensemble(path: str, section: RewardSection, *, load: Loader | None = None) -> RewardEnsemble:
    """Load the reward model or the ensemble in a folder, with the section's rule.

    Args:
        path: folder or hub id.
        section: the rule, and how to compute.
        load: reads the weights; None: `load_pretrained`.

    Raises:
        ModelLoadError: if a member cannot be loaded, or the members' tokenizers differ.
    """
    paths = member_paths(path)
    members = tuple(load_reward_model(member, section, load=load) for member in paths)
    if len(paths) > 1 and len({tokenizer_fingerprint(load_tokenizer(member)) for member in paths}) > 1:
        raise ModelLoadError(f"the members of {path!r} have different tokenizers")
    rule = section.ensemble
    weight = section.ensemble_std_weight
    temperature = members[0].temperature if len(members) == 1 else 0.0
    fitted = temperature_of(path)
    same_weight = fitted is not None and (rule != "mean_minus_std" or fitted.std_weight == weight)
    if fitted is not None and fitted.rule == rule and same_weight:
        temperature = fitted.temperature
    return RewardEnsemble(members, rule=rule, std_weight=weight, temperature=temperature)
