"""`fairlead iterate` with simulated labelers over HTTP: killed at each step, stopped, and its lineage."""

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
PEOPLE = ("--with-simulated-labelers", "examples.parcel_help.people:people")
ALIKE = ("--with-simulated-labelers", "examples.parcel_help.people:alike")
ROUND = ("judgments", "reward_model", "gate", "ppo")
STEPS = [
    *("sft", "sample", *(f"{step}-0" for step in ROUND), "evaluate_and_sample-0"),
    *(*(f"{step}-1" for step in ROUND), "evaluate-1"),
]
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
batch_size = 32
mini_batch_size = 32
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
            [sys.executable, "-m", "fairlead.cli", "iterate", "run.toml", *flags],
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


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Return a folder with the data and the configuration of a run."""
    pairs = corpus.demonstrations(800, seed=0)
    write_rows(tmp_path / "demonstrations.jsonl", ({"prompt": p, "completion": a} for p, a in pairs))
    write_rows(tmp_path / "prompts.jsonl", ({"prompt": question.text} for question in corpus.questions()))
    (tmp_path / "run.toml").write_text(TOML)
    return tmp_path


def outcome(run: Path) -> dict[str, Any]:
    """Return what a run was made of and what it made, without random names."""
    found: dict[str, Any] = {"sft": model_digest(run / "sft")}
    for number, folder in enumerate((run, run / "round-1")):
        data = run / f"data/round-{number}"
        found[f"tasks {number}"] = (data / "tasks.jsonl").read_text()
        found[f"rankings {number}"] = [
            (one["prompt"], [(answer["text"], answer["rank"]) for answer in one["responses"]])
            for one in read_rows(data / "rankings.jsonl")
        ]
        found[f"gate {number}"] = json.loads((data / "gate.json").read_text())
        found[f"answers {number}"] = (data / "answers.jsonl").read_text()
        found |= {f"{model} {number}": model_digest(folder / model) for model in ("reward_model", "policy")}
    return found


async def kill_at(folder: Path, run: Path, place: int, step: str, *flags: str) -> None:
    """Start the command, and end it with SIGKILL when a step has begun."""
    before = len(output(folder)) if (folder / "output.txt").exists() else 0
    killed = start(folder, *flags)

    def begun() -> bool:
        assert killed.poll() is None, output(folder)[-2_000:]
        return f"[{place}/12]" in output(folder)[before:]

    await until(begun, seconds=300)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert step not in steps_done(run)
    await until(lambda: not _of_run(run), seconds=60)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
async def test_iterate_killed_at_each_step_has_the_outcome_of_an_undisturbed_run(texts: Path) -> None:
    # Labelers of whom each says the same, and PPO bit for bit: any difference is a fault.
    flags = (*ALIKE, "--set", "deterministic=true", "--set", "feedback.project.shared_share=0")
    killed, undisturbed = (texts / "runs" / name for name in ("killed", "undisturbed"))
    for place, step in enumerate(STEPS, start=1):
        await kill_at(texts, killed, place, step, "--set", "name=killed", *flags)
    assert finish(texts, "--set", "name=killed", *flags) == 0, output(texts)[-3_000:]
    assert steps_done(killed) == STEPS
    assert finish(texts, "--set", "name=undisturbed", *flags) == 0, output(texts)[-3_000:]
    found, wanted = outcome(killed), outcome(undisturbed)
    assert {name for name in wanted if found[name] != wanted[name]} == set()
    assert wanted["gate 0"]["measured_on"] == "held-out prompts"
    assert wanted["gate 1"]["pairs"] > 0
    # Every task was handed over once, and every judgment counts once.
    for number in (0, 1):
        (tasks,) = rows(killed, f"SELECT count(*) FROM task WHERE why = 'random' AND round = {number}")
        assert len(wanted[f"rankings {number}"]) == tasks[0] <= 60
    assert not _of_run(killed)

    # Again: nothing to do, and the store is as it was.
    entries = rows(killed, "SELECT count(*) FROM entry")
    assert finish(texts, "--set", "name=killed", *flags) == 0
    assert output(texts).count("already done") >= len(STEPS)
    assert rows(killed, "SELECT count(*) FROM entry") == entries


@pytest.mark.slow
@pytest.mark.timeout(1_800)
async def test_stopped_round_continues_with_more_judgments_and_another_reward_model(texts: Path) -> None:
    run = texts / "runs" / "people"
    await kill_at(texts, run, 6, "ppo-0", *PEOPLE)  # after the first gate
    data = run / "data/round-0"
    rankings, heldout = (read_rows(data / f"{name}.jsonl") for name in ("rankings", "heldout"))
    assert {one["cohort"] for one in rankings} == {"train"}
    assert {one["cohort"] for one in heldout} == {"heldout"}
    assert {one["round"] for one in [*rankings, *heldout]} == {0}
    said = [(one["task"], one["labeler"]) for one in [*rankings, *heldout]]
    assert len(said) == len(set(said))
    decision = json.loads((data / "gate.json").read_text())
    assert decision["measured_on"] == "held-out people"
    assert decision["difference"] == pytest.approx(decision["accuracy"] - decision["accuracy_before"])
    assert 0 <= decision["ece"] <= 1
    assert 0 < decision["longer_wins"] < 1

    # As if the gate had stopped it; what it decides has tests of its own.
    first = model_digest(run / "reward_model")
    (data / "stopped.json").write_text(json.dumps({"judgments": len(said), "why": "too bad"}))
    assert finish(texts, *PEOPLE, "--rounds", "1", "--set", "iterate.gate=stop") in (0, 6)
    more = sum(len(read_rows(data / f"{name}.jsonl")) for name in ("rankings", "heldout"))
    assert more >= len(said) + len(said) // 10
    assert model_digest(run / "reward_model") != first

    assert finish(texts, *PEOPLE, "--rounds", "1") == 0, output(texts)[-3_000:]
    # From the policy back to the judgments; the model that was replaced is known too.
    second, policy = model_digest(run / "reward_model"), model_digest(run / "policy")
    made_from = set(rows(run, "SELECT artifact, source FROM made_from"))
    (snapshot,) = (one["train"] for one in read_rows(data / "snapshot.jsonl"))
    assert {(policy, second), (second, snapshot)} <= made_from
    assert [source for artifact, source in made_from if artifact == first] != [snapshot]
    assert not _of_run(run)


def _of_run(run: Path) -> list[psutil.Process]:
    """Return the processes that work on the run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(run) in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found
