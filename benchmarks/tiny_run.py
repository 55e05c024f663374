"""A run of PPO with tiny models, in a folder: its file and its prompts, how it is started, how far it is.

What measures or tests a run from outside brings the models: `policy` and `reward` beside the file.
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
    """Writes prompts and `run.toml`; returns the latter. Its last section is `[observe]`.

    Args:
        folder: where.
        name: of the run.
        prompts: of the run.
        settings: by dotted key, beside those that all such runs share.
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
    """What a person types to start it."""
    return (sys.executable, "-m", "fairlead.cli", "ppo", str(file), *arguments)


def step(folder: RunFolder) -> int:
    """Updates done."""
    now = read_progress(folder.progress)
    return now.step if now else 0
