"""`fairlead export`: writes policy and reward model of a run as folders that transformers can load.

Reads the run's folder and writes another folder atomically: `policy/`, `reward_model/`, and `export.json`,
which marks the folder as an export that a later one may replace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from fairlead import __version__
from fairlead.config import RunConfig, RunFolder, load
from fairlead.config.base import ComputeSection, DType
from fairlead.errors import ConfigError, FairleadError
from fairlead.nn.loading import torch_dtype, weights_digest
from fairlead.report import run_record
from fairlead.report.run_record import RunRecord
from trainer import durable
from trainer.export import card, cards, policy, reward

RECORD = "export.json"
"""Marks a folder as an export: says what it holds, with the SHA-256 of every file."""

Part = Literal["policy", "reward_model"]
PARTS: tuple[Part, ...] = ("policy", "reward_model")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Which weights to export, and where."""

    run: Path
    """The folder of the run."""
    target: Path
    """The new folder."""
    which: str = "last"
    """Weights of the policy: `last`, `best`, `sft`, or a version such as `1-20`."""
    parts: Sequence[Part] = PARTS
    """The parts to export, as far as the run has them."""
    dtype: DType = "float32"
    """Data type of the exported weights."""
    adapter: bool = False
    """Export only the adapter of the policy, for a run with `[ppo.lora]`."""
    force: bool = False
    """Whether to replace an earlier export."""


def export(request: ExportOptions) -> dict[str, str]:
    """Write the export; return a description of each part.

    Raises:
        ConfigError: for a missing run, missing weights, or a target that must not be replaced.
        CorruptData, ModelLoadError: if weights are damaged or cannot be loaded.
        FairleadError: if the target cannot be written.
    """
    folder = RunFolder(request.run)
    if not folder.config.is_file():
        raise ConfigError("run", got=str(request.run), allowed="the folder of a run, with its config.toml")
    config = load(folder.config)
    target = request.target.resolve()
    _check_target(target, force=request.force)
    found = _read(config, folder, request)
    record = run_record.read(folder)
    try:
        with durable.new_folder(target) as unfinished:
            summaries = _write(config, folder, record, request, found, unfinished)
            durable.write_json(unfinished / RECORD, _contents(unfinished, folder, summaries), durable=False)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FairleadError(f"cannot write {target}: {reason}; it is unchanged") from error
    return summaries


@dataclass(frozen=True, slots=True)
class _Found:
    policy: policy.ExportedPolicy | None
    rewards: reward.ExportedRewardModel | None


def _read(config: RunConfig, folder: RunFolder, request: ExportOptions) -> _Found:
    """Load the models before anything is written."""
    rewards = reward.read(folder) if "reward_model" in request.parts else None
    found = _Found(
        policy.read(config, folder, request.which, adapter=request.adapter)
        if "policy" in request.parts
        else None,
        rewards,
    )
    if found == _Found(None, None):
        raise ConfigError("run", got=str(request.run), allowed="a run that has trained a reward model")
    return found


def _write(
    config: RunConfig,
    folder: RunFolder,
    record: RunRecord,
    request: ExportOptions,
    found: _Found,
    unfinished: Path,
) -> dict[str, str]:
    dtype = torch_dtype(ComputeSection(dtype=request.dtype))
    summaries: dict[str, str] = {}
    if found.policy is not None:
        path = unfinished / "policy"
        policy.save(found.policy, path, config.sampling, dtype=dtype)
        card.write(path, cards.policy_card(config, folder, record, found.policy))
        summaries["policy"] = found.policy.described
    if found.rewards is not None:
        path = unfinished / "reward_model"
        # Computed before the weights are cast: the reward service reports the same digest as its version.
        digests = [weights_digest(member.model) for member in found.rewards.members]
        reward.save(found.rewards, path, dtype=dtype)
        card.write(path, cards.reward_card(config, folder, record, found.rewards, digests))
        count = len(found.rewards.members)
        summaries["reward_model"] = f"an ensemble of {count}" if count > 1 else "one model"
    return summaries


def _check_target(target: Path, *, force: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError("target", got=str(target), allowed="a folder, or a name that does not exist")
    if not any(target.iterdir()):
        return
    if not (target / RECORD).is_file():
        raise ConfigError(
            "target",
            got=f"{target}, which is not empty",
            allowed="a new folder, or the folder of an earlier export",
        )
    if not force:
        raise ConfigError("target", got=f"{target}, an earlier export", allowed="another folder, or --force")


def _contents(unfinished: Path, folder: RunFolder, summaries: dict[str, str]) -> dict[str, object]:
    files = sorted(path for path in unfinished.rglob("*") if path.is_file())
    return {
        "fairlead": __version__,
        "run": folder.root.resolve().name,
        **summaries,
        "sha256": {str(path.relative_to(unfinished)): _sha256(path) for path in files},
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
