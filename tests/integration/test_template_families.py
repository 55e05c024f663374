"""SFT, reward model and PPO of each template family, as processes: all score an answer at the same token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from benchmarks import tiny_run
from fairlead.config import RunFolder
from fairlead.config.serving import RewardSection
from fairlead.types import Message, TextPair, TokenPair, WholeText
from services.reward.scorer import RewardScorer
from tests.template_families import FAMILIES, causal_lm, tokenizer_of

ANSWER = "sorry ."
TURNS = [
    [{"role": "user", "content": f"where is {thing} {number} ?"}]
    for number in range(12)
    for thing in ("lamp", "parcel", "kettle", "phone")
]
SETTINGS: Mapping[str, object] = {
    "model.path": "base",
    "data.demonstrations": "demonstrations.jsonl",
    "data.preferences": "preferences.jsonl",
    "data.heldout_fraction": 0.1,
    "sft.epochs": 12,
    "sft.learning_rate": 5e-3,
    "sft.threads": 1,
    "reward_model.epochs": 2,
    "reward_model.learning_rate": 1e-3,
    "reward_model.threads": 1,
    "sampling.max_new_tokens": 24,
    "ppo.updates": 2,
    "evaluation.every_updates": 2,
    "evaluation.num_prompts": 2,
    "policy.path": "",
    "reference.path": "",
    "reward.path": "",
}


def jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(folder: Path, name: str) -> Path:
    """Write a base model, the data and `run.toml`."""
    causal_lm(name, folder / "base", context=192)
    file = tiny_run.write(folder, name="tiny", prompts=(), settings=SETTINGS)
    answer = {"role": "assistant", "content": ANSWER}
    jsonl(folder / "prompts.jsonl", [{"prompt": turn} for turn in TURNS])
    jsonl(folder / "demonstrations.jsonl", [{"messages": [*turn, answer]} for turn in TURNS])
    jsonl(
        folder / "preferences.jsonl",
        [{"prompt": turn, "chosen": ANSWER, "rejected": "no idea at all ."} for turn in TURNS],
    )
    return file


@pytest.mark.slow  # three stages of processes for each family
@pytest.mark.parametrize("name", FAMILIES)
def test_stages_of_a_family_score_at_one_token(tmp_path: Path, name: str, capsys):
    file = write_run(tmp_path, name)
    for stage in ("sft", "reward-model", "ppo"):
        command = [sys.executable, "-m", "fairlead.cli", stage, str(file)]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=dict(os.environ),
            check=False,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    folder = RunFolder(tmp_path / "runs" / "tiny")
    tokenizer = tokenizer_of(name)
    stop = tokenizer.convert_tokens_to_ids(FAMILIES[name].stop)
    config = json.loads((folder.reward_model / "config.json").read_text())
    assert config["fairlead_answer_end"] == {"conversation": [stop], "text": [tokenizer.eos_token_id]}

    scorer = RewardScorer(str(folder.reward_model), RewardSection(device="cpu"))
    rows = [json.loads(line) for line in folder.rollout_samples.read_text().splitlines()]
    # Other samples may have ids that their text would not get again.
    learnt = [row for row in rows if row["ended"] and row["text"].strip() == ANSWER]
    assert learnt, rows
    for row in learnt:
        [turn] = [turn for turn in TURNS if turn[0]["content"] in row["prompt"]]
        found = {"PPO": row["score"], **scores(scorer, turn)}
        assert found == pytest.approx(dict.fromkeys(found, row["score"]), abs=1e-5)
    with capsys.disabled():
        sys.stdout.write(f"\n{name}, {len(learnt)} answers: {found}\n")


def scores(scorer: RewardScorer, turn: list[dict[str, str]]) -> dict[str, float | Exception]:
    """Return the score of the learnt answer as messages, as rendered text and as its ids."""
    tokenizer = scorer._reader._tokenizer
    rendered = tokenizer.apply_chat_template(
        [*turn, {"role": "assistant", "content": ANSWER}], tokenize=False
    )
    items = {
        "messages": TextPair("", ANSWER, tuple(Message(**one) for one in turn)),
        "text": WholeText(rendered),
        "ids": TokenPair((), tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])),
    }
    return dict(zip(items, scorer.score(scorer.encode(list(items.values()))), strict=True))
