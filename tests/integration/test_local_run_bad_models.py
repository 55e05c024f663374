"""A run with an unusable model reports it in one line and stops; after a fix the same command finishes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.integration.ppo_run import check, make, started


def custom_code(folder: Path) -> None:
    """Make the reward model require its own code."""
    settings = json.loads((folder / "reward" / "config.json").read_text())
    settings["architectures"] = ["LlamaForRewardModelWithGating"]
    (folder / "reward" / "config.json").write_text(json.dumps(settings))


def too_many_tokens(folder: Path) -> None:
    """Add a token to the policy's tokenizer for which its embedding has no row."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    tokenizer.add_tokens(["w56"])
    tokenizer.save_pretrained(folder / "policy")


def cut_off(folder: Path) -> None:
    """Remove half of the reference model's weights."""
    weights = folder / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


@pytest.mark.slow  # all six processes start, twice
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (custom_code, "was made for LlamaForRewardModelWithGating, which is custom code"),
        (too_many_tokens, "has an embedding of 60 rows, and its tokenizer has ids up to 60"),
        (cut_off, "cannot load the model"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_unusable_model_stops_the_run_until_it_is_fixed(tmp_path: Path, damage, says):
    file = make(tmp_path, updates=2)
    good = {path: path.read_bytes() for path in tmp_path.glob("*/*") if path.is_file()}
    damage(tmp_path)
    with started(file) as run:
        code, output = run.finish()
        assert code == 2, output + run.log_tails()
        last = output.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert says in last
        assert "Traceback" not in output
    for path, content in good.items():
        path.write_bytes(content)
    with started(file) as run:
        code, output = run.finish()
        assert code == 0, output + run.log_tails()
        check(run.folder)
