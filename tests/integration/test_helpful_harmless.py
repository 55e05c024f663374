"""The example from the pairs to the picture, with a model small enough to be trained in a minute."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from examples.helpful_harmless import asking, instructions, make, measures
from fairlead.config import load
from fairlead.config.saving import save
from tests.tiny import tiny_causal_lm

ROOT = Path(__file__).parents[2]
TEMPLATE = (
    "{% for message in messages %}w50 {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}w50 {% endif %}"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]


def _words(rng: random.Random, *, of: range) -> str:
    return " ".join(f"w{rng.choice(of)}" for _ in range(rng.randint(3, 8)))


def _pairs(count: int) -> list[dict[str, Any]]:
    """Return pairs in which the better answer has lower words."""
    rng = random.Random(1)
    low, high = range(20), range(20, 40)
    return [
        {
            "prompt": [{"role": "user", "content": f"w{number % 50} {_words(rng, of=range(40))}"}],
            "chosen": [{"role": "assistant", "content": _words(rng, of=low)}],
            "rejected": [{"role": "assistant", "content": _words(rng, of=high)}],
        }
        for number in range(count)
    ]


def _data(folder: Path) -> Path:
    rng = random.Random(2)
    everything = range(40)
    (folder / "rotten_tomatoes").mkdir(parents=True)
    sentences = [{"text": _words(rng, of=everything), "label": number % 2} for number in range(60)]
    (folder / "rotten_tomatoes" / "sentences.jsonl").write_text(_lines(sentences))
    (folder / "alpaca_eval").mkdir()
    rankings = [
        {
            "prompt": _words(rng, of=everything),
            "responses": [{"text": _words(rng, of=everything), "score": 0.5}],
        }
        for _ in range(instructions.NUM_EVALUATED + 40)
    ]
    file = folder / "alpaca_eval" / "rankings.jsonl.gz"
    file.write_bytes(gzip.compress(_lines(rankings).encode()))
    return folder


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _run(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1_500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


def test_example_from_the_pairs_to_the_picture(tmp_path: Path) -> None:
    model = tiny_causal_lm(tmp_path / "model", max_position_embeddings=256)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    pairs = tmp_path / "pairs.jsonl.gz"
    pairs.write_bytes(gzip.compress(_lines(_pairs(300)).encode()))
    data = _data(tmp_path / "data")
    build = tmp_path / "build" / "helpful_harmless"
    counts = make.make(pairs, build)
    assert make.make_demonstrations(data / "alpaca_eval" / "rankings.jsonl.gz", build) == 40
    paths = ("model", "reward_model", "policy")
    config = load(
        ROOT / "configs" / "helpful_harmless.toml",
        overrides={
            **{f"{section}.path": str(model) for section in paths},
            "base": str(tmp_path / "configs"),
            "runs": str(tmp_path / "runs"),
            "reward_model.epochs": 4,
            "reward_model.learning_rate": 3e-3,
            "sampling.max_new_tokens": 8,
            "ppo.updates": 3,
            "ppo.batch_size": 16,
            "ppo.mini_batch_size": 8,
        },
    )
    file = tmp_path / "run.toml"
    save(config, file)
    for stage in ("reward-model", "ppo"):
        _run("-m", "fairlead.cli", stage, str(file), folder=tmp_path)
    flags = ("--data", str(data), "--picture", str(tmp_path / "outcome.svg"))
    printed = _run("-m", "examples.helpful_harmless", str(file), *flags, folder=tmp_path)

    figures = json.loads((config.folder.root / "result_evaluation.json").read_text())
    assert figures["pairs"] == {"known": counts["train"], "unseen": counts["judge"] + counts["heldout"]}
    assert figures["reward_models"]["reward_model"]["accuracy"] > 0.9
    assert figures["reward_models"]["bag_of_words"]["accuracy"] > 0.9
    assert figures["reward_models"]["judge"]["accuracy"] > 0.7
    assert set(figures["changes"]) == set(measures.MEASURES)
    assert figures["changes"]["judge"]["n"] == min(counts["heldout"], asking.NUM_PROMPTS)
    assert all(f"| {measure.title} |" in printed for measure in measures.MEASURES.values())
    assert (tmp_path / "outcome.svg").read_text().lstrip().startswith("<?xml")
