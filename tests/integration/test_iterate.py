"""`fairlead iterate` with simulated labelers over HTTP: two rounds, killed at each step, gate and lineage."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from examples.parcel_help import corpus
from fairlead.rounds.files import read_rows, write_rows
from fairlead.rounds.iteration import model_digest
from tests.waiting import until

ROOT = Path(__file__).parents[2]
SIMULATED = ("--with-simulated-labelers", "examples.parcel_help.people:people")
STEPS = ("sample", "judgments", "reward_model", "gate", "ppo", "evaluate")
TOML = """
name = "people"
[model.scratch]
hidden_size = 32
num_layers = 1
num_heads = 2
max_position_embeddings = 96
tokenizer = "words"
vocabulary_size = 256
[data]
demonstrations = "demonstrations.jsonl"
prompts = "prompts.jsonl"
[sft]
threads = 1
epochs = 1
batch_size = 16
learning_rate = 3e-3
max_sequence_tokens = 96
[reward_model]
threads = 1
epochs = 2
batch_size = 16
learning_rate = 1e-3
max_sequence_tokens = 96
[sampling]
max_new_tokens = 32
[evaluation]
num_prompts = 16
[ppo]
threads = 1
updates = 4
batch_size = 64
mini_batch_size = 64
[guard]
action = "warn"
[policy]
threads = 1
[reward]
threads = 1
[reference]
threads = 1
[observe]
rollout_samples = 64
[feedback.project]
overlap = 3
shared_share = 0.3
[iterate]
tasks = 60
min_agreement = 0
# So small a model may be worse by chance; what the gate decides has tests of its own.
gate = "warn"
fresh_per_update = 2
"""


def start(folder: Path, *flags: str) -> subprocess.Popen[bytes]:
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "fairlead.cli", "iterate", "run.toml", *flags, *SIMULATED],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=output,
        )


def output(folder: Path) -> str:
    return (folder / "output.txt").read_text()


def finish(folder: Path, *flags: str) -> int:
    return start(folder, *flags).wait(900)


def steps_done(run: Path) -> list[str]:
    return list(json.loads((run / "iterate.json").read_text())["seconds"])


def rows(run: Path, statement: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(run / "feedback.db") as store:
        return store.execute(statement).fetchall()


@pytest.mark.slow
@pytest.mark.timeout(1_800)
async def test_iterate_is_killed_at_each_step_and_resumed(tmp_path: Path) -> None:
    pairs = corpus.demonstrations(800, seed=0)
    write_rows(tmp_path / "demonstrations.jsonl", ({"prompt": p, "completion": a} for p, a in pairs))
    write_rows(tmp_path / "prompts.jsonl", ({"prompt": question.text} for question in corpus.questions()))
    (tmp_path / "run.toml").write_text(TOML)
    run = tmp_path / "runs" / "people"

    for place, step in enumerate(STEPS):  # The first round: each step is killed after it has begun.
        before = output(tmp_path) if (tmp_path / "output.txt").exists() else ""
        killed = start(tmp_path)
        shown = f"[{place + 2}/13]"

        def begun(before: str = before, shown: str = shown, killed: subprocess.Popen[bytes] = killed) -> bool:
            assert killed.poll() is None, output(tmp_path)[-2_000:]
            return shown in output(tmp_path)[len(before) :]

        await until(begun, seconds=300)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert f"{step}-0" not in steps_done(run)
        await until(lambda: not _of_run(run), seconds=60)
    assert finish(tmp_path) == 0, output(tmp_path)[-3_000:]
    assert steps_done(run) == ["sft", *(f"{step}-{number}" for number in (0, 1) for step in STEPS)]

    # Every task was handed over once, and every judgment is of one person.
    answered = [read_rows(run / f"data/round-{number}/tasks.jsonl") for number in (0, 1)]
    tasks = rows(run, "SELECT round, count(*) FROM task WHERE why = 'random' GROUP BY round ORDER BY round")
    assert [count <= len(known) for (_, count), known in zip(tasks, answered, strict=True)] == [True, True]
    for number in (0, 1):
        rankings = read_rows(run / f"data/round-{number}/rankings.jsonl")
        heldout = read_rows(run / f"data/round-{number}/heldout.jsonl")
        assert {one["cohort"] for one in rankings} == {"train"}
        assert {one["cohort"] for one in heldout} == {"heldout"}
        assert {one["round"] for one in [*rankings, *heldout]} == {number}
        said = [(one["task"], one["labeler"]) for one in [*rankings, *heldout]]
        assert len(said) == len(set(said)) >= tasks[number][1]
        decision = json.loads((run / f"data/round-{number}/gate.json").read_text())
        gained = decision["accuracy"] - decision["accuracy_before"]
        assert decision["difference"] == pytest.approx(gained)
        assert decision["pairs"] > 0

    # From the last policy back to the judgments of both rounds.
    folders = [run, run / "round-1"]
    made_from = {
        (artifact, source) for artifact, source in rows(run, "SELECT artifact, source FROM made_from")
    }
    models = [model_digest(folder / "reward_model") for folder in folders]
    policies = [model_digest(folder / "policy") for folder in folders]
    assert {(policies[0], models[0]), (policies[1], models[1]), (policies[1], policies[0])} <= made_from
    snapshots = [read_rows(run / f"data/round-{number}/snapshot.jsonl")[0]["train"] for number in (0, 1)]
    assert {source for artifact, source in made_from if artifact == models[1]} == set(snapshots)
    assert not _of_run(run)

    # Again: nothing to do, and the store is as it was.
    entries = rows(run, "SELECT count(*) FROM entry")
    assert finish(tmp_path) == 0
    assert output(tmp_path).count("already done") >= 13
    assert rows(run, "SELECT count(*) FROM entry") == entries


def _of_run(run: Path) -> list[psutil.Process]:
    """Return the processes that work on the run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(run) in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found
