"""The whole headline at a tiny size, interrupted once: every stage, judge, table and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.headline import command
from examples.headline.seed import Plan, Seed
from examples.headline.sizes import Size
from fairlead.config import RunFolder
from fairlead.errors import FairleadError
from fairlead.local.run_files import RunLock


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

    figures = command.run(PLAN, [0, 1], tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("already done") == 4  # pages, two models, and what tunes one
    assert f"{2 * steps} of {2 * steps} steps" in printed
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
