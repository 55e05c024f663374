"""`fairlead best-of-n` and `compare` with real services: figures, resumption, refused settings, people."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fairlead.config import load
from fairlead.data.records import load_demonstrations
from tests.integration.test_cli_serving import fairlead, jsonl, lines
from tests.service_process import SharedServices
from tests.tiny import tiny_causal_lm

# A busy machine may take minutes to start processes that import torch.
pytestmark = pytest.mark.timeout(900)
PROMPTS = [{"prompt": f"w{n} w{n % 3}", "topic": "ab"[n % 2]} for n in range(10)]
SHORT = ("--max-new-tokens", 24)


@pytest.fixture
def services(shared: SharedServices) -> dict[str, str]:
    """Return the addresses of a reward service and of a policy service."""
    return shared.addresses("reward", "policy")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with prompts and a gold function."""
    (tmp_path / "p.jsonl").write_text(jsonl(*PROMPTS))
    (tmp_path / "judge.py").write_text(
        "def gold(prompts, answers):\n    return [len(set(answer.split())) for answer in answers]\n"
    )
    return tmp_path


def test_best_of_n_keeps_the_best_and_continues(services: dict[str, str], folder: Path):
    command = (
        *("best-of-n", "p.jsonl", "--policy", services["policy"], "--reward", services["reward"]),
        *("--gold", "judge:gold", "--keep", 2, "--out", "best", *SHORT),
    )
    # Interrupted after the first lines, as by Ctrl-C.
    process = subprocess.Popen(
        [sys.executable, "-m", "fairlead.cli", *map(str, command), "--n", "16"], cwd=folder
    )
    partial = folder / "best" / ".samples.jsonl.partial"
    deadline = time.monotonic() + 300
    while not (partial.exists() and partial.stat().st_size) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=120)
    kept = partial.read_bytes() if partial.exists() else (folder / "best" / "samples.jsonl").read_bytes()
    assert code in (0, 1, 130)
    again = fairlead(*command, "--n", 16, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (folder / "best" / "samples.jsonl").read_bytes().startswith(kept)
    samples = lines((folder / "best" / "samples.jsonl").read_text())
    assert [line["prompt"] for line in samples] == [line["prompt"] for line in PROMPTS]
    report = json.loads((folder / "best" / "report.json").read_text())
    scores = [row["score"] for row in report["best_of_n"]]
    assert [row["n"] for row in report["best_of_n"]] == [1, 2, 4, 8, 16]
    assert scores == sorted(scores)
    every = [one["score"] for line in samples for one in line["responses"]]  # type: ignore[attr-defined]
    assert scores[0] == pytest.approx(sum(every) / len(every))
    assert (folder / "best" / "report.html").read_text().count("svg") >= 1
    # The best answers that ended are demonstrations that SFT reads.
    demonstrations = lines((folder / "best" / "demonstrations.jsonl").read_text())
    first = samples[0]["responses"]
    ended = {one["text"]: one["score"] for one in first if one["finish_reason"] == "stop" and one["text"]}  # type: ignore[attr-defined]
    assert [
        line["completion"] for line in demonstrations if line["prompt"] == PROMPTS[0]["prompt"]
    ] == sorted(ended, key=lambda text: -ended[text])[:2]
    settings = {"base": str(folder), "data.demonstrations": "best/demonstrations.jsonl"}
    assert load_demonstrations(load(overrides=settings)).train
    other = fairlead(*command, "--n", 8, cwd=folder)
    assert other.returncode == 2
    assert "n: 16 before, 8 now" in other.stderr


def test_compare_by_gold_and_by_people(services: dict[str, str], folder: Path):
    command = ("compare", services["policy"], services["policy"], "p.jsonl", *SHORT, "--group", "topic")
    same = fairlead(*command, "--reward", "judge:gold", "--out", "same", cwd=folder)
    assert same.returncode == 0, same.stderr
    found = json.loads((folder / "same" / "report.json").read_text())
    # One policy with one seed gives the same answers, which tie.
    assert (found["win_rate"], found["ties"], found["interval"]) == (
        0.5,
        10,
        pytest.approx([0.237, 0.763], abs=1e-3),
    )
    assert found["groups"].keys() == {"a", "b"}
    people = fairlead(*command, "--out", "people", "--n", 2, cwd=folder)
    assert people.returncode == 0, people.stderr
    assert "pairs.jsonl" in people.stdout
    missing = fairlead(*command[:-1], "subject", "--out", "x", cwd=folder)
    assert missing.returncode == 2
    assert "'subject'" in missing.stderr
    both = fairlead(*command, "--reward", "judge:gold", "--ai", services["policy"], "--out", "x", cwd=folder)
    assert both.returncode == 2
    assert "one judge" in both.stderr


def test_function_and_instruction_that_are_wrong_are_reported_before_a_service_starts(folder: Path):
    best = ("best-of-n", "p.jsonl", "--policy", "absent", "--reward", "absent", "--out", "out")
    compare = ("compare", "absent", "absent", "p.jsonl", "--out", "out")
    for command, error in (
        ((*best, "--gold", "judge:nothing"), "--gold: got 'judge:nothing', allowed: module:function"),
        ((*compare, "--reward", "judge:nothing"), "--reward: got 'judge:nothing', allowed: module:function"),
        ((*compare, "--ai", "absent", "--instruction", "none.txt"), '--instruction: got "none.txt'),
        (("compare", "judge:gold", *compare[2:]), "A: got 'judge:gold', allowed: HOST:PORT"),
    ):
        refused = fairlead(*command, cwd=folder)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"error: {error}"), refused.stderr


@pytest.mark.slow
def test_models_are_served_for_a_comparison_and_verdicts_come_back(folder: Path):
    models = [tiny_causal_lm(folder / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    command = ("compare", *models, "p.jsonl", *SHORT, "--out", "people", "--timeout-seconds", 600)
    assert fairlead(*command, cwd=folder).returncode == 0
    pairs = lines((folder / "people" / "pairs.jsonl").read_text())
    samples = lines((folder / "people" / "samples.jsonl").read_text())
    of_a = {pair["a"] for line in samples for pair in line["compared"]}  # type: ignore[attr-defined]
    judged = [{**pair, "better": "first" if pair["first"] in of_a else "second"} for pair in pairs]
    (folder / "judged.jsonl").write_text(jsonl(*judged))
    assert {pair["first"] in of_a for pair in pairs} == {True, False}
    found = fairlead(*command, "--verdicts", "judged.jsonl", cwd=folder)
    assert found.returncode == 0, found.stderr
    report = json.loads((folder / "people" / "report.json").read_text())
    assert report["win_rate"] > 0.9
    # This model writes words without meaning: none of its replies is a verdict, and every pair a tie.
    ai = fairlead(*command[:-4], "--ai", models[0], "--out", "ai", "--timeout-seconds", 600, cwd=folder)
    assert ai.returncode == 0, ai.stderr
    report = json.loads((folder / "ai" / "report.json").read_text())
    assert (report["ties"], report["position_bias"]["unreadable"]) == (10, 1.0)
