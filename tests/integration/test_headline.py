"""The whole headline at a tiny size, interrupted once: every stage, judge, table and the picture."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from examples.headline import command
from examples.headline.seed import Plan, Seed
from examples.headline.sizes import Size
from fairlead.config import RunFolder
from fairlead.errors import FairleadError
from fairlead.local.run_files import RunLock
from tests.waiting import eventually


def _size(name: str, hidden_size: int) -> Size:
    return Size(
        name=name,
        hidden_size=hidden_size,
        num_layers=1,
        num_heads=2,
        learning_rate=1e-2,
        sft_learning_rate=3e-3,
        sft_epochs=1,
        threads=1,
    )


PLAN = Plan(
    sizes=(_size("small", 16), _size("large", 32)),
    num_pages=300,
    num_demonstrations=300,
    num_rounds=1,
    num_answers=2,
    changes={
        "iterate.tasks": 40,
        "reward_model.epochs": 1,
        "ppo.updates": 2,
        "ppo.batch_size": 32,
        "ppo.mini_batch_size": 16,
        "evaluation.num_prompts": 16,
    },
)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_headline_continues_and_writes_table_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(name: str, seconds: float | None) -> None:
        if name == "tune":
            raise KeyboardInterrupt

    first = Seed(PLAN, 0, tmp_path / "seed-0")
    steps = len(first.steps())
    shown: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        first.run(shown.append, stop)
    assert not first.answers.exists()
    assert not any("already done" in line for line in shown)
    capsys.readouterr()

    figures = command.run(PLAN, [0, 1], tmp_path, jobs=2)
    printed = capsys.readouterr().out
    assert printed.count("already done") == 4  # pages, two models, and what tunes one
    assert f"{2 * steps} of {2 * steps} steps" in printed
    assert f"seed 1 [{steps}/{steps}] " in printed
    assert figures == json.loads((tmp_path / "headline.json").read_text())
    assert figures["judges"] == ["gold", "labelers", "reward model of another seed"]
    for one in figures["seeds"]:
        for key in ("tuned_against", "against_largest_fine_tuned"):
            assert len(one[key]) == 8 * 3
            for row in one[key]:
                low, high = row["interval"]
                assert 0 <= low <= row["win_rate"] <= high <= 1
                assert row["wins"] + row["ties"] + row["losses"] == 2 * one["heldout_questions"]
        parameters = {row["size"]: row.get("parameters") for row in one["models"]}
        assert parameters["small"] < parameters["large"]
    assert (tmp_path / "headline.md").read_text().count("\n## ") == 6
    assert (tmp_path / "headline.svg").stat().st_size > 10_000

    scores = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-*/scores-by-seed-*.jsonl")}
    assert len(scores) == 2
    again = command.run(PLAN, [0, 1], tmp_path)
    assert again["seeds"] == figures["seeds"]
    assert scores == {path: path.stat().st_mtime_ns for path in scores}


def test_two_commands_in_one_folder_are_refused(tmp_path: Path) -> None:
    with RunLock(RunFolder(tmp_path)), pytest.raises(FairleadError, match="another fairlead process"):
        command.run(PLAN, [0], tmp_path)


@pytest.mark.slow
def test_seed_that_fails_is_named_and_stops_the_others(tmp_path: Path) -> None:
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "notes.txt").write_text("mine")
    with pytest.raises(FairleadError, match=r"^seed 1: .*seed-1.*not empty"):
        command.run(PLAN, [0, 1], tmp_path, jobs=2)
    assert not multiprocessing.active_children()
    assert not (tmp_path / "seed-0" / "answers.jsonl").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigterm_stops_every_seed(tmp_path: Path) -> None:
    flags = ["--seeds", "0,1", "--jobs", "2", "--out", str(tmp_path / "out"), "--pages", "30000"]
    command = [sys.executable, "-m", "examples.headline", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pretraining = set[str]()
        for line in process.stdout:
            pretraining |= {line[:10]} & {"seed 0 [2/", "seed 1 [2/"}
            if len(pretraining) == 2:
                break
        ours = psutil.Process(process.pid)
        eventually(lambda: len(ours.children(recursive=True)) >= 5)  # two seeds and what they started
        children = ours.children(recursive=True)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, "the same command continues" in errors) == (143, True)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
