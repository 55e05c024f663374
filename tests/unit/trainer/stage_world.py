"""Data and configuration for runs of one training stage that are small enough for a unit test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fairlead.config import RunConfig, load
from fairlead.config.saving import replace_text


def write_demonstrations(folder: Path) -> None:
    """Write 120 demonstrations that a model from scratch memorises."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"prompt": f"say w{n % 9}", "completion": f"here is w{n % 9} ."} for n in range(120)]
    # Every rank of a test writes the same file, while another may already read it.
    replace_text(folder / "d.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def sft_run(folder: Path, **changes: object) -> RunConfig:
    """Return a configuration for fine-tuning on them; `changes` are settings of `[sft]`."""
    write_demonstrations(folder)
    settings = {"learning_rate": 3e-3, "batch_size": 8, "device": "cpu", **changes}
    data = {"data.demonstrations": "d.jsonl", "data.heldout_fraction": 0.2}
    return _run(folder, data | {"model.scratch.tokenizer": "words"}, "sft", settings)


def reward_model_run(folder: Path, *, comparisons: int, **changes: object) -> RunConfig:
    """Return a configuration for learnable comparisons; `changes` are settings of `[reward_model]`."""
    lines = [
        {"prompt": f"w{n % 30}", "chosen": f"w{40 + n % 7} w50", "rejected": f"w{40 + n % 5} w51"}
        for n in range(comparisons)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "p.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    settings = {"learning_rate": 3e-3, "epochs": 2, "device": "cpu", **changes}
    data = {"data.preferences": "p.jsonl", "data.heldout_fraction": 0.3}
    return _run(folder, data, "reward_model", settings)


def preference_run(folder: Path, *, comparisons: int = 60, **changes: object) -> RunConfig:
    """Return a configuration of the preference stage for the same comparisons, and for rankings with ties."""
    rankings = [
        {
            "prompt": f"w{n % 30} w{n % 4}",
            "responses": [
                {"text": f"w{40 + n % 7} w50", "rank": 1},
                {"text": f"w{40 + n % 5} w51", "rank": 2},
                {"text": f"w{41 + n % 5} w51 w2", "rank": 2},
            ],
        }
        for n in range(comparisons // 3)
    ]
    config = reward_model_run(folder, comparisons=comparisons)
    with (folder / "p.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in rankings)
    settings = {"learning_rate": 1e-2, "epochs": 2, "batch_size": 8, "device": "cpu", **changes}
    data = {"data.preferences": "p.jsonl", "data.heldout_fraction": 0.3}
    assert config.data.preferences
    return _run(folder, data, "preference", settings)


def _run(folder: Path, data: Mapping[str, object], section: str, settings: Mapping[str, object]) -> RunConfig:
    places = {"runs": str(folder / "runs"), "base": str(folder)}
    return load(
        overrides={**places, **data, **{f"{section}.{name}": value for name, value in settings.items()}}
    )
