"""configs/qwen.toml with tiny models of the same shapes: two tokenizers, messages, bfloat16, adapters."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from fairlead.config import load
from fairlead.config.serving import RewardSection
from fairlead.data.chat import Chat
from fairlead.data.template import render
from fairlead.types import Message, TextPair
from services.reward.scorer import RewardScorer
from tests import architectures
from tests.integration.ppo_run import account, started

ROOT = Path(__file__).parents[2]
SMALLER = {
    "name": "tiny",
    "model.path": "policy",
    "policy.path": "policy",
    "reference.path": "policy",
    "reward.path": "reward",
    "data.prompts": "prompts.jsonl",
    "data.heldout_fraction": 0.2,
    "sampling.max_new_tokens": 8,
    "ppo.updates": 2,
    "ppo.batch_size": 8,
    "ppo.mini_batch_size": 8,
    "ppo.lora.rank": 2,
    "evaluation.every_updates": 2,
    "evaluation.num_prompts": 4,
    "observe.tensorboard": "false",
}


def foreign_reward_model(folder: Path) -> Path:
    """Make a reward model like those of the hub: Qwen3, one label, another tokenizer, no extra bias."""
    architectures.reward_model("qwen3", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["parcel", "lamp"])
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    del settings["fairlead_reward_bias"]
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.slow  # all six processes start, and two more
def test_run_with_two_tokenizers(tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(architectures.causal_lm("qwen2", tmp_path / "policy"))
    foreign_reward_model(tmp_path / "reward")
    questions = [f"where is parcel {number} ?" for number in range(30)]
    system = {"role": "system", "content": "be kind"}
    lines = [{"messages": [system, {"role": "user", "content": question}]} for question in questions]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = Path(shutil.copy(ROOT / "configs" / "qwen.toml", tmp_path / "run.toml"))
    flags = [part for key, value in SMALLER.items() for part in ("--set", f"{key}={value}")]
    with started(file, *flags) as run:
        code, output = run.finish(seconds=400)
        assert code == 0, output + run.log_tails()
        assert account(run.folder) == dict.fromkeys(range(16), 1)
        ledger = [json.loads(line) for line in run.folder.ledger.read_text().splitlines()]
        assert {line["event"] for line in ledger} == {"trained"}
        assert {line["scored_as_text"] for line in ledger} == {True}
        assert "completions are scored as text" in run.folder.log("rollout-worker-0").read_text()
        config = load(run.folder.config)

    # Every score is that of the turns and the answer in the reward model's own template.
    section = RewardSection(device="cpu", dtype="bfloat16")
    scorer = RewardScorer(str(tmp_path / "reward"), section)
    asked = {
        tokenizer.decode(
            tokenizer(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True
        ): turns
        for turns in ((Message("system", "be kind"), Message("user", question)) for question in questions)
        for text in [render(tokenizer, Chat(turns), generate=True)]
    }
    rows = [json.loads(line) for line in run.folder.rollout_samples.read_text().splitlines()]
    pairs = [TextPair("", row["text"], asked[row["prompt"]]) for row in rows]
    assert len(rows) == 16
    ours = [scorer.score([sequence])[0] for sequence in scorer.encode(pairs)]
    assert ours == pytest.approx([row["score"] for row in rows], abs=0.05)  # bfloat16 moves with the batch
    assert len({round(score, 1) for score in ours}) > 3

    result = json.loads(run.folder.result("ppo").read_text())
    assert config.ppo.lora.rank == 2
    assert result["best_update"] == 2
    for flags in (["--which", "best"], ["--adapter", "--force"]):
        command = [
            sys.executable,
            "-m",
            "fairlead.cli",
            "export",
            str(run.folder.root),
            str(tmp_path / "out"),
            *flags,
        ]
        subprocess.run(command, check=True, cwd=tmp_path, timeout=200)
        AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "policy")
        text = (tmp_path / "out" / "policy" / "README.md").read_text()
        assert "aligned by PPO against the reward model `reward`, after 2 updates" in text
        assert "apply_chat_template" in text
