"""A PPO run with tiny models in a folder: its configuration and prompts, its command, its progress.

The benchmark or test provides the models: `policy` and `reward` in the same folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fairlead.config import RunFolder
from fairlead.local.run_files import read_progress

_SETTINGS: Mapping[str, object] = {
    "data.prompts": "prompts.jsonl",
    "policy.path": "policy",
    "reference.path": "policy",
    "reward.path": "reward",
    "ppo.batch_size": 8,
    "ppo.mini_batch_size": 8,
    "sampling.max_new_tokens": 8,
    "checkpoint.every_updates": 2,
}


def write(folder: Path, *, name: str, prompts: Iterable[str], settings: Mapping[str, object]) -> Path:
    """Write prompts and `run.toml`; return the path of the latter. Its last section is `[observe]`.

    Args:
        folder: target folder.
        name: name of the run.
        prompts: prompts of the run.
        settings: by dotted key, in addition to those that all such runs share.
    """
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts]
    (folder / "prompts.jsonl").write_text("".join(line + "\n" for line in lines))
    sections: dict[str, list[str]] = {}
    for key, value in {**_SETTINGS, **settings, "observe.tensorboard": False}.items():
        section, _, field = key.partition(".")
        sections.setdefault(section, []).append(f"{field} = {json.dumps(value)}\n")
    text = "".join(f"[{section}]\n{''.join(fields)}" for section, fields in sections.items())
    file = folder / "run.toml"
    file.write_text(f"name = {json.dumps(name)}\n{text}")
    return file


def command(file: Path, *arguments: str) -> Sequence[str]:
    """Return the command that starts it."""
    return (sys.executable, "-m", "fairlead.cli", "ppo", str(file), *arguments)


def step(folder: RunFolder) -> int:
    """Return the number of updates done."""
    now = read_progress(folder.progress)
    return now.step if now else 0
