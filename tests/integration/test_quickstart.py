"""The whole quickstart, and the same command again after it has finished."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


def _quickstart(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.parcel_help", *flags],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.slow
def test_quickstart_improves_the_policy_and_loses_no_task(tmp_path: Path) -> None:
    done = _quickstart(tmp_path)
    assert done.returncode == 0, done.stderr[-2_000:]
    folder = tmp_path / "runs" / "quickstart"
    found = json.loads((folder / "report.json").read_text())
    first, last = found["rounds"]

    assert last["reward_model"]["accuracy_gold"] >= 0.78  # 0.80 to 0.85 on five seeds
    for one in (first, last):
        assert one["ppo"]["gold_after"] > one["ppo"]["gold_before"] + 0.2
        assert one["ppo"]["proxy_after"] > one["ppo"]["proxy_before"] + 0.2
        assert one["ppo"]["episodes"] == 24 * 256
        assert not [alert for alert in one["ppo"]["guards"] if alert["level"] == "stop"]
        model = one["reward_model"]
        assert model["accuracy_gold"] >= model["baselines"]["bag_of_words"]["accuracy_gold"] + 0.02
    assert first["ppo"]["win_rate_vs_sft"] >= 0.65
    assert last["ppo"]["win_rate_vs_sft"] >= 0.80
    assert last["ppo"]["kl"] <= 8
    assert last["ppo"]["gold_before"] == first["ppo"]["gold_after"]
    # The refreshed model is more accurate on answers that were tuned for the model before it.
    assert last["reward_model"]["fresh_accuracy_gold"] > last["reward_model"]["stale_accuracy_gold"]
    assert found["queue"] == {
        "tasks_dispatched": 12_288,
        "tasks_trained": 12_288,
        "tasks_duplicated": 0,
        "tasks_lost": 0,
        "dead_letters": 0,
    }
    assert 0.72 < found["labelers"]["agreement"] < 0.78
    every_round = ("judgments", "reward_model", "gate", "ppo")
    stages = {"corpus", "sft", "sample", *(f"{name}-{number}" for name in every_round for number in (0, 1))}
    stages |= {"evaluate_and_sample-0", "evaluate-1", "report"}
    assert set(found["seconds"]) == stages | {"total"}
    # The labelers were clients of a feedback service, which knows what the models were made from.
    with sqlite3.connect(folder / "feedback.db") as store:
        (judgments,) = store.execute("SELECT count(*) FROM entry WHERE kind = 'judgment'").fetchone()
        kinds = [kind for (kind,) in store.execute("SELECT kind FROM artifact ORDER BY kind")]
    assert judgments > 1_500
    assert kinds == ["policy"] * 2 + ["reward_model"] * 2 + ["snapshot"] * 2
    for number in (0, 1):
        decision = json.loads((folder / f"data/round-{number}/gate.json").read_text())
        assert decision["passes"]
        assert decision["measured_on"] == "held-out prompts"
    assert 50_000 < (folder / "report.html").stat().st_size < 200_000
    marked = str(folder)
    assert not [p for p in psutil.process_iter(["cmdline"]) if marked in " ".join(p.info["cmdline"] or [])]

    ledger = (folder / "round-1" / "ledger.jsonl").read_text()
    again = _quickstart(tmp_path)
    assert again.returncode == 0
    assert again.stdout.count("already done") == len(stages)
    assert (folder / "round-1" / "ledger.jsonl").read_text() == ledger

    other = _quickstart(tmp_path, "--seed", "1")
    assert other.returncode == 2
    assert "made with other settings" in other.stderr


@pytest.mark.slow
def test_break_it_games_the_reward_and_a_guard_fires_in_time(tmp_path: Path) -> None:
    # By chance the reward model of seed 0 is good enough that gold does not fall; see docs/results.md.
    done = _quickstart(tmp_path, "--break-it", "--seed", "1")
    assert done.returncode == 0, done.stderr[-2_000:]
    folder = tmp_path / "runs" / "quickstart-break-it"
    found = json.loads((folder / "break_it.json").read_text())
    assert len(found["gold"]) == len(found["proxy"]) == 40
    assert found["proxy_last"] > found["proxy_first"] + 1.5
    assert found["gold_last"] < found["gold_first"]
    assert found["gold_peak"] > found["gold_last"] + 0.3
    assert found["fired"]["level"] == "stop"
    if found["gold_gained"]:
        assert found["fired"]["update"] < found["half_lost"]
    assert found["gold_saved"] > 0.2
    assert (folder / "break_it.html").stat().st_size > 50_000
