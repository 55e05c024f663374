"""`fairlead export`: policy and reward model of a run as folders that anyone can load, whole or not at all.

Reads the run's folder, writes one of its own: `policy/`, `reward_model/`, and `export.json`, by which a later
export knows that it may replace the folder.
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
from trainer import durable, run_record
from trainer.export import card, cards, policy, reward
from trainer.run_record import RunRecord

RECORD = "export.json"
"""Makes a folder an export: what it holds, and the SHA-256 of every file."""

Part = Literal["policy", "reward_model"]
PARTS: tuple[Part, ...] = ("policy", "reward_model")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What is exported where."""

    run: Path
    """The run's folder."""
    target: Path
    """The new folder."""
    which: str = "last"
    """Weights of the policy: `last`, `best`, `sft`, or a version."""
    parts: Sequence[Part] = PARTS
    """What is exported, if the run has it."""
    dtype: DType = "float32"
    """Type of the weights in the files."""
    adapter: bool = False
    """Of a run with `[ppo.lora]`, the policy's adapter alone."""
    force: bool = False
    """Replace an earlier export."""


def export(request: ExportRequest) -> dict[str, str]:
    """Writes the folder; returns what became of each part, in words.

    Raises:
        ConfigError: no such run or weights, nothing to export, or a target that may not be replaced.
        CorruptData, ModelLoadError: weights that are damaged or cannot be loaded.
        FairleadError: the disk refuses.
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
        with durable.new_folder(target) as aside:
            said = _write(config, folder, record, request, found, aside)
            durable.write_json(aside / RECORD, _contents(aside, folder, said), durable=False)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise FairleadError(f"cannot write {target}: {why}; it is left as it was") from error
    return said


@dataclass(frozen=True, slots=True)
class _Found:
    policy: policy.ExportedPolicy | None
    rewards: reward.ExportedRewardModel | None


def _read(config: RunConfig, folder: RunFolder, request: ExportRequest) -> _Found:
    """Models into memory, before anything is written."""
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
    request: ExportRequest,
    found: _Found,
    aside: Path,
) -> dict[str, str]:
    dtype = torch_dtype(ComputeSection(dtype=request.dtype))
    said: dict[str, str] = {}
    if found.policy is not None:
        path = aside / "policy"
        policy.save(found.policy, path, config.sampling, dtype=dtype)
        card.write(path, cards.policy_card(config, folder, record, found.policy))
        said["policy"] = found.policy.described
    if found.rewards is not None:
        path = aside / "reward_model"
        # Before the weights are cast: the version that the reward service tells.
        digests = [weights_digest(member.model) for member in found.rewards.members]
        reward.save(found.rewards, path, dtype=dtype)
        card.write(path, cards.reward_card(config, folder, record, found.rewards, digests))
        count = len(found.rewards.members)
        said["reward_model"] = f"an ensemble of {count}" if count > 1 else "one model"
    return said


def _check_target(target: Path, *, force: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError("target", got=str(target), allowed="a folder, or a name that is free")
    if not any(target.iterdir()):
        return
    if not (target / RECORD).is_file():
        raise ConfigError(
            "target",
            got=f"{target}, which is not empty",
            allowed="a new folder, or that of an earlier export",
        )
    if not force:
        raise ConfigError("target", got=f"{target}, an earlier export", allowed="another folder, or --force")


def _contents(aside: Path, folder: RunFolder, said: dict[str, str]) -> dict[str, object]:
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    return {
        "fairlead": __version__,
        "run": folder.root.resolve().name,
        **said,
        "sha256": {str(path.relative_to(aside)): _sha256(path) for path in files},
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
