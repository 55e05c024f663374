"""Functions of verl, OpenRLHF and TRL for comparison, taken from their published wheels by name.

Their packages need Ray, DeepSpeed and more to be imported, but the functions that define advantages and
losses need only torch. So the wheels are downloaded without dependencies, unpacked into a temporary folder,
and single functions are compiled from their files. Nothing of them is in this repository.
"""

from __future__ import annotations
import __future__

import ast
import itertools
import math
import subprocess
import sys
import textwrap
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

VERSIONS = {"verl": "0.9.1", "openrlhf": "0.11.2", "trl": "1.16.0"}


def download(folder: Path) -> Path | str:
    """Unpack the wheels into a folder and return it; if the package index cannot be used, return why."""
    wheels = [f"{name}=={version}" for name, version in VERSIONS.items()]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    # The only wheel of OpenRLHF is for this platform; its files are Python nevertheless.
    command += ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=none"]
    command += ["--platform=manylinux1_x86_64", "--platform=any"]
    try:
        subprocess.run(
            [*command, "--quiet", "--retries=1", f"--dest={folder}", *wheels],
            check=True,
            capture_output=True,
            timeout=300,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return f"no wheels of {', '.join(wheels)}: {(error.stderr or b'').decode()[-300:]}"
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


def compiled(path: Path, names: set[str], known: Mapping[str, Any]) -> SimpleNamespace:
    """Return functions, classes and constants of a file, without their decorators.

    Args:
        path: the file.
        names: their names; `Class.method` for a method, which becomes a function.
        known: what they use.
    """
    body: list[ast.stmt] = []
    missing = set(names)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else []
        candidates = [(node, ""), *((one, f"{getattr(node, 'name', '')}.") for one in inner)]
        for one, prefix in candidates:
            name = prefix + _name(one)
            if name in missing:
                missing.remove(name)
                if isinstance(one, ast.FunctionDef):
                    one.decorator_list = []
                body.append(one)
    assert not missing, f"{path} has no {sorted(missing)}"
    module = ast.fix_missing_locations(ast.Module(body=body, type_ignores=[]))
    space: dict[str, Any] = {"torch": torch, "math": math, "np": np, "defaultdict": defaultdict, **known}
    flags = __future__.annotations.compiler_flag
    exec(compile(module, str(path), "exec", flags=flags, dont_inherit=True), space)
    return SimpleNamespace(**{name.rpartition(".")[2]: space[name.rpartition(".")[2]] for name in names})


def _name(node: ast.stmt) -> str:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        return getattr(target, "id", "")
    return getattr(node, "name", "")


def excerpt(path: Path, first: str, last: str) -> str:
    """Return the lines of a file from the one that contains `first` to the one before `last`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if first in line)
    end = next(index for index in range(start, len(lines)) if last in lines[index])
    return textwrap.dedent("\n".join(lines[start:end]))


class Config(SimpleNamespace):
    """In place of verl's `ActorConfig`."""

    def get(self, key: str, default: object) -> object:
        return getattr(self, key, default)


def verl(folder: Path) -> SimpleNamespace:
    """Return verl's advantages, losses, and importance weights."""
    utils, ppo = folder / "verl/utils", folder / "verl/trainer/ppo"
    masked = {"masked_sum", "masked_mean", "masked_var", "masked_whiten", "clip_by_value"}
    functional = compiled(utils / "torch_functional.py", masked, {})
    groups = compiled(
        utils / "groupwise.py",
        {"as_torch_index", "group_mean_std", "_resolve_device", "_to_1d_numpy_object_array"},
        {},
    )
    algorithms = compiled(
        ppo / "core_algos.py",
        {
            *("compute_gae_advantage_return", "compute_grpo_outcome_advantage"),
            *("compute_grpo_vectorized_outcome_advantage", "compute_rloo_outcome_advantage"),
            *("compute_rloo_vectorized_outcome_advantage", "compute_value_loss", "agg_loss"),
            "compute_reinforce_plus_plus_outcome_advantage",
            "compute_reinforce_plus_plus_baseline_outcome_advantage",
            *("compute_policy_loss_vanilla", "compute_policy_loss_gspo", "compute_policy_loss_cispo"),
            *("kl_penalty", "kl_penalty_forward"),
        },
        {
            "verl_F": functional,
            "ActorConfig": Config,
            "AlgoConfig": type("AlgoConfig", (), {}),
            "as_torch_index": groups.as_torch_index,
            "group_mean_std": groups.group_mean_std,
        },
    )
    correction = compiled(
        ppo / "rollout_corr_helper.py",
        {
            *("SAFETY_BOUND", "SUPPORTED_ROLLOUT_RS_OPTIONS", "TOKEN_LEVEL_ROLLOUT_RS_OPTIONS"),
            *("_parse_rollout_is_threshold", "_parse_rollout_rs_thresholds"),
            *("compute_rollout_correction_weights", "compute_rollout_rejection_mask"),
        },
        {
            "verl_F": functional,
            "compute_is_metrics": lambda **_: {},
            "compute_rs_metrics": lambda **_: {},
        },
    )
    return SimpleNamespace(**vars(algorithms), **vars(correction), Config=Config)


def openrlhf(folder: Path) -> SimpleNamespace:
    """Return OpenRLHF's advantages and losses."""
    found = next(folder.glob("openrlhf-*.data/purelib/openrlhf"), folder / "openrlhf")
    utils = compiled(
        found / "models/utils.py",
        {"KL_IS_WEIGHT_CLIP", "compute_approx_kl", "compute_reward", "masked_mean"},
        {},
    )
    losses = compiled(
        found / "models/loss.py",
        {"aggregate_loss", "PolicyLoss", "ValueLoss"},
        {"nn": torch.nn, "masked_mean": utils.masked_mean},
    )
    penalties = compiled(found / "trainer/ppo_utils/length_penalty.py", {"apply_overlong_penalty"}, {})
    maker = compiled(
        found / "trainer/ppo_utils/experience_maker.py",
        {
            f"RemoteExperienceMaker.{name}"
            for name in (
                "compute_advantages_and_returns",
                "get_advantages_and_returns",
                "get_cumulative_returns",
            )
        },
        {
            "itertools": itertools,
            "compute_reward": utils.compute_reward,
            "apply_length_penalties": lambda *_: None,
        },
    )
    return SimpleNamespace(**vars(utils), **vars(losses), **vars(penalties), **vars(maker))


def trl(folder: Path) -> SimpleNamespace:
    """Return TRL's loss of GRPO, and the text of what computes advantages in its trainers."""
    trainer = folder / "trl/trainer"
    extremes = compiled(trainer / "utils.py", {"nanstd", "nanmin", "nanmax"}, {})
    loss = compiled(trainer / "grpo_trainer.py", {"GRPOTrainer._compute_loss"}, vars(extremes))
    return SimpleNamespace(
        **vars(loss),
        nanstd=extremes.nanstd,
        of_groups=excerpt(
            trainer / "grpo_trainer.py",
            "mean_grouped_rewards = torch.nanmean(rewards.view(-1, num_generations), dim=1)",
            "is_std_zero =",
        ),
        leave_one_out=excerpt(
            trainer / "rloo_trainer.py",
            "# Include the KL penalty in the reward",
            "# Normalize advantages over the scorable subset",
        ),
    )
