"""Run the tutorial from its page, then the examples on the run that it makes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest

from examples.own_data import make
from tests.integration.page import ROOT, Reader

TUTORIAL = ROOT / "docs" / "tutorial.md"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Run the tutorial, except for what takes minutes, with fewer updates of PPO."""
    reader = Reader(tmp_path_factory.mktemp("tutorial"), environment={"FAIRLEAD_PPO__UPDATES": "4"})
    try:
        reader.read(TUTORIAL, slow=False)
        yield reader
    finally:
        reader.close()


def _python(reader: Reader, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=reader.folder,
        env=os.environ | {"RUN": str(reader.folder / "runs" / "own-data")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_tutorial_produces_what_its_page_shows(reader: Reader) -> None:
    run = reader.folder / "runs" / "own-data"
    assert json.loads((run / "result_reward_model.json").read_text())["accuracy"] > 0.7
    ppo = json.loads((run / "result_ppo.json").read_text())
    assert (ppo["updates"], ppo["tasks_lost"], ppo["tasks_duplicated"]) == (4, 0, 0)
    best = next(text for text in reader.printed if "print(max(" in text)
    assert re.fullmatch(r"\(-?\d+\.\d+, '.+'\)\n", reader.printed[best])
    rankings = (reader.folder / "mine" / "rankings.jsonl").read_text().splitlines()
    ranks = [{answer["rank"] for answer in json.loads(line)["responses"]} for line in rankings]
    assert ranks.count({1, 2}) > 20


def test_own_data_files_equal_what_make_writes(tmp_path: Path) -> None:
    make.write(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"demonstrations.jsonl", "preferences.jsonl", "prompts.jsonl"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (ROOT / "examples" / "own_data" / name).read_bytes()


@pytest.mark.slow
def test_score_example_ranks_answers_and_reports_errors(reader: Reader) -> None:
    address, prompt = f"127.0.0.1:{reader.ports['5002']}", "can i borrow the map ?"
    good, poor = "of course , enjoy the map !", "i do not know ."
    done = _python(reader, "-m", "examples.score", address, prompt, poor, good)
    assert [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()] == [good, poor]
    refused = _python(reader, "-m", "examples.score", address, prompt, poor, f"{good} " * 50)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: items.text[1]: got "), refused.stderr


@pytest.mark.slow
def test_best_of_n_scores_grow_with_n(reader: Reader) -> None:
    command = next(command for command in reader.printed if "best_of_n" in command)
    rows = [line.split() for line in reader.printed[command].splitlines()[1:]]
    assert [int(row[0]) for row in rows] == [1, 2, 4, 8, 16]
    scores = [float(row[1]) for row in rows]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] + 0.5
    addresses = [f"127.0.0.1:{reader.ports[port]}" for port in ("5001", "5002")]
    one = _python(reader, "-m", "examples.best_of_n", *addresses, "can i borrow the map ?", "--samples", "5")
    ranked = [float(line.split()[0]) for line in one.stdout.splitlines()]
    assert len(ranked) == 5
    assert ranked == sorted(ranked, reverse=True)


@pytest.mark.slow
def test_notebook_runs_in_a_kernel(reader: Reader) -> None:
    out, source = reader.folder / "notebook.ipynb", ROOT / "examples" / "notebook.ipynb"
    done = _python(reader, "-m", "jupyter", "execute", str(source), "--output", str(out))
    assert done.returncode == 0, done.stderr[-3_000:]
    cells = nbformat.read(out, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert [o for o in outputs if "KL of the best of 16: 1.84 nats at most" in o.get("text", "")], outputs
    kept = nbformat.read(source, as_version=4).cells
    assert not [cell for cell in kept if cell.get("outputs")], (
        "the notebook must be committed without outputs"
    )
    mark = str(reader.folder / "runs" / "own-data" / "policy_service.toml")
    assert not [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_whole_tutorial_reproduces_its_figures(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    try:
        reader.read(TUTORIAL, slow=True)
    finally:
        reader.close()
    counts = [int(printed) for command, printed in reader.printed.items() if "| grep -c" in command]
    first, warm, before, after = counts
    # 11, 26, 12 and 22 of 32 when the page was written.
    assert warm >= first + 8
    assert after >= before + 5
    report = json.loads((tmp_path / "runs" / "quickstart" / "report.json").read_text())
    assert report["rounds"][-1]["ppo"]["win_rate_vs_sft"] >= 0.75
