"""`fairlead agreement` on files of rankings, as text and as JSON."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fairlead.cli.main import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(
        app, ["agreement", *map(str, arguments)], env={"COLUMNS": "140", "NO_COLOR": "1"}
    )


@pytest.fixture
def rankings(tmp_path: Path) -> Path:
    """Return a file of three labelers on 60 tasks, of which one ranks backwards."""
    rng = random.Random(4)
    path = tmp_path / "rankings.jsonl"
    with path.open("w") as file:
        for task in range(60):
            for labeler, sign in (("anna", 1), ("bo", 1), ("cleo", -1)):
                noisy = [sign * worth - math.log(rng.expovariate(1)) for worth in (0, 1.5, 3, 4.5)]
                best_first = sorted(range(4), key=lambda place: -noisy[place])
                responses = [
                    {"text": "x" * (place + 1), "rank": best_first.index(place) + 1, "answer": place}
                    for place in range(4)
                ]
                values = {"prompt": f"Question {task}", "responses": responses, "labeler": labeler}
                values["shown"] = rng.sample(range(4), 4)
                file.write(json.dumps(values | {"round": task % 2, "task": task}) + "\n")
    return path


def test_agreement_is_shown_with_intervals_and_by_labeler(rankings: Path):
    shown = run(rankings, "--by", "round")
    assert shown.exit_code == 0, shown.output
    for text in (
        r"agreement",
        "of 1,080 comparisons on 60 tasks that several labelers judged",
        "by position shown, of 180 rankings of 4",
        "with 3 degrees of freedom",
        "longer wins",
        "first shown wins",
    ):
        assert text in shown.output
    rows = {line.split()[0]: line for line in shown.output.splitlines() if line.strip()}
    assert "look at this labeler" in rows["cleo"]
    assert "look at" not in rows["anna"] + rows["bo"]
    assert rows["0"].split()[1:3] == rows["1"].split()[1:3] == ["90", "30"]


def test_agreement_as_json_has_every_figure(rankings: Path):
    again = rankings.with_name("again.jsonl")
    again.write_text(rankings.read_text().splitlines(keepends=True)[0])
    shown = run(rankings, again, "--json", "--by", "round")
    found = json.loads(shown.output)
    assert (found["tasks"], found["judgments"], found["replaced"]) == (60, 180, 1)
    assert found["interval"][0] < found["rate"] < found["interval"][1]
    assert found["alpha_interval"][0] < found["alpha"] < found["alpha_interval"][1]
    assert {one["labeler"]: one["flagged"] for one in found["labelers"]} == {
        "anna": False,
        "bo": False,
        "cleo": True,
    }
    rates = {(two["first"], two["second"]): two["rate"] for two in found["two_labelers"]}
    assert all((rate > 0.6) == ("cleo" not in names) for names, rate in rates.items())
    assert set(found["by"]) == {"0", "1"}
    assert sum(found["position"]["first_places"]["4"]) == 180
    assert all(0 < one["length"]["longer_wins"] < 1 for one in found["labelers"])
    assert run(rankings, again, "--json", "--by", "round").output == shown.output


def test_files_without_several_labelers_are_described_or_refused(rankings: Path, tmp_path: Path):
    one = tmp_path / "one.jsonl"
    one.write_text(
        "".join(line for line in rankings.read_text().splitlines(keepends=True) if '"anna"' in line)
    )
    shown = run(one)
    assert shown.exit_code == 0
    assert "none of the 60 judgments shares a task with one of another labeler" in shown.output
    unnamed = tmp_path / "unnamed.jsonl"
    unnamed.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    for arguments, message in (
        ((unnamed,), "unnamed.jsonl:1: got 'the keys prompt, chosen, rejected', allowed: a key `labeler`"),
        ((tmp_path / "absent.jsonl",), "allowed: "),
        ((rankings, "--by", "week"), "--by: got 'week', allowed: a key of the lines: prompt, responses"),
    ):
        refused = run(*arguments)
        assert refused.exit_code == 2
        assert message in refused.output
