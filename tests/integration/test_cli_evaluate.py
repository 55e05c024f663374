"""`fairlead evaluate` of the folder of a run, with real models, and its card in the run's report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.test_cli_serving import fairlead, jsonl, lines
from tests.service_process import SharedServices
from tests.tiny import tiny_causal_lm, tiny_reward_model

# A busy machine may take minutes to start processes that import torch.
pytestmark = pytest.mark.timeout(900)
OWN = (
    {"probe": "harmful", "prompt": "w1 w2 w3"},
    {"probe": "harmless", "prompt": "w4"},
    {"probe": "question", "prompt": "w5 w6", "accepted": ["w7"], "belief": "w8"},
    {"probe": "length", "prompt": "w9", "response": "w1", "padded": "w1 w1 w2"},
    {"probe": "counterfactual", "prompt": "{swap}", "response": "w3", "first": ["w1"], "second": ["w2"]},
)


def test_own_items_with_running_services(shared: SharedServices, tmp_path: Path):
    addresses = shared.addresses("reward", "policy")
    (tmp_path / "own.jsonl").write_text(jsonl(*OWN))
    command = ("evaluate", addresses["policy"], "--against", addresses["policy"], "--items", "own.jsonl")
    options = ("--reward", addresses["reward"], "--max-new-tokens", 8, "--out", "card")
    found = fairlead(*command, *options, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "| harmful prompts refused | 1 |" in found.stdout
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    assert card["items"] == {"harmful": 1, "harmless": 1, "question": 1, "length": 1, "counterfactual": 1}
    # One policy on both sides: nothing changes.
    changes = [row["change"]["value"] for row in card["figures"] if "change" in row]
    assert changes
    assert set(changes) == {0.0}
    assert {row["suite"] for row in card["figures"]} == {"safety", "truth", "sycophancy", "bias"}
    samples = lines((tmp_path / "card" / "samples.jsonl").read_text())
    assert len(samples) == 5 + 5
    again = fairlead(*command, *options, "--max-items", 0, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "is complete" in again.stderr
    (tmp_path / "own.jsonl").write_text(jsonl(*OWN, {"probe": "harmfull", "prompt": "w1"}))
    refused = fairlead(*command, *options, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: own.jsonl:6: got")


@pytest.mark.slow
def test_card_of_a_run_is_in_its_report(tmp_path: Path):
    run = tmp_path / "runs" / "x"
    sft = tiny_causal_lm(tmp_path / "sft", max_position_embeddings=512)
    run.mkdir(parents=True)
    shutil.copytree(sft, run / "sft")
    tiny_causal_lm(run / "policy", seed=1, max_position_embeddings=512)
    tiny_reward_model(run / "reward_model", max_position_embeddings=512)
    (run / "config.toml").write_text('name = "x"\n')
    command = ("evaluate", "runs/x", "--max-items", 3, "--max-new-tokens", 8, "--timeout-seconds", 600)
    found = fairlead(*command, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    card = json.loads((run / "evaluation" / "card.json").read_text())
    assert card["items"]["counterfactual"] == 3 * 9
    values = {row["name"]: row for row in card["figures"]}
    # Tiny models write words without meaning: they refuse nothing, offend nobody and know nothing.
    for name in ("refused_harmful", "refused_harmless", "toxic_words", "correct"):
        assert (values[name]["value"], values[name]["against"]["value"]) == (0.0, 0.0)
    # The tokenizer reads the names as one unknown word, so this reward scores groups alike.
    assert values["reward_group_gap:names: women or men"]["value"] == pytest.approx(0.0, abs=1e-4)
    assert values["reward_order"]["value"] == 0.0
    assert fairlead("report", "runs/x", cwd=tmp_path).returncode == 0
    assert "harmful prompts refused" in (run / "report.html").read_text()
