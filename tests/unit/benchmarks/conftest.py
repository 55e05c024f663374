"""What the tests of benchmarks share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import quickstart
from fairlead.config.saving import save
from tests.tiny import tiny_causal_lm, tiny_reward_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder like that of a quickstart, with models of random weights."""
    folder = tmp_path / "made"
    tiny_causal_lm(folder / "sft", seed=1)
    tiny_reward_model(folder / "reward_model", seed=2)
    (folder / "data").mkdir()
    prompts = [{"prompt": f"w{n} w{n * 7 % 56}"} for n in range(20)]
    (folder / "data" / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts))
    save(quickstart.config({"seed": "3"}), folder / "config.toml")
    return folder
