"""`fairlead score` and `generate` on a terminal and in a pipe, with real services."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fairlead import RewardClient
from fairlead.cli.main import app
from fairlead.local import status
from fairlead.local.run_files import ProcessRecord
from tests.service_process import SharedServices, free_address

# A busy machine may take a minute to start a process that imports torch.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def services(shared: SharedServices) -> dict[str, str]:
    """Return the addresses of a reward service and of a policy service."""
    return shared.addresses("reward", "policy")


def fairlead(*arguments: object, cwd: Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command: in this process, which has imported everything, or with text at its standard input."""
    command = [*map(str, arguments)]
    if given is None:
        with contextlib.chdir(cwd):
            done = CliRunner().invoke(app, command)
        return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)
    return subprocess.run(
        [sys.executable, "-m", "fairlead.cli", *command],
        cwd=cwd,
        input=given,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def jsonl(*objects: object) -> str:
    return "".join(json.dumps(each) + "\n" for each in objects)


def test_scores_are_in_the_order_of_the_lines_and_equal_the_service(services: dict[str, str], tmp_path: Path):
    given = [{"prompt": f"w{n % 7} w2", "response": f"w{n % 5} w{n % 3}", "id": n} for n in range(150)]
    (tmp_path / "in.jsonl").write_text(jsonl(*given))
    shown = fairlead(
        *("score", "in.jsonl", "--address", services["reward"], "--batch-size", 7, "--out", "new/out.jsonl"),
        cwd=tmp_path,
    )
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")
    found = lines((tmp_path / "new" / "out.jsonl").read_text())
    assert [{key: line[key] for key in ("prompt", "response", "id")} for line in found] == given
    with RewardClient(services["reward"]) as client:
        expected = client.score([(line["prompt"], line["response"]) for line in given])  # type: ignore[misc]
    assert [line["score"] for line in found] == pytest.approx(expected.scores, abs=1e-5)
    assert {line["model_version"] for line in found} == {expected.model_version}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.jsonl"]


def test_responses_of_a_line_are_scored_and_the_best_is_marked(services: dict[str, str], tmp_path: Path):
    first = {"prompt": "w1", "responses": ["w3", "w5 w6", "w9"]}
    chat = {"prompt": [{"role": "user", "content": "w1"}], "responses": [{"text": "w3"}, {"text": ""}]}
    (tmp_path / "in.jsonl").write_text(jsonl(first, chat))
    shown = fairlead("score", "in.jsonl", "--address", services["reward"], cwd=tmp_path)
    assert shown.returncode == 2, "this tokenizer has no chat template"
    assert shown.stderr.startswith("error: in.jsonl:2: ")
    (tmp_path / "in.jsonl").write_text(jsonl(first))
    shown = fairlead("score", "in.jsonl", "--address", services["reward"], cwd=tmp_path)
    first = lines(shown.stdout)[0]
    scores = first["scores"]
    assert isinstance(scores, list)
    assert len(scores) == 3
    assert scores[first["best"]] == max(scores)  # type: ignore[call-overload]


def test_generate_pipes_into_score(services: dict[str, str], tmp_path: Path):
    asked = ("generate", "w1 w2", "w5", "--address", services["policy"], "--n", 3, "--max-new-tokens", 6)
    answers = fairlead(*asked, cwd=tmp_path)
    assert answers.returncode == 0, answers.stderr
    assert fairlead(*asked, cwd=tmp_path).stdout == answers.stdout
    found = lines(answers.stdout)
    assert [line["prompt"] for line in found] == ["w1 w2", "w5"]
    assert all(len(line["responses"]) == 3 for line in found)  # type: ignore[arg-type]
    first = found[0]["responses"][0]  # type: ignore[index]
    assert set(first) == {"text", "finish_reason", "num_tokens", "weight_versions"}
    assert first["weight_versions"] == ["0-0"]
    scored = fairlead("score", "-", "--address", services["reward"], cwd=tmp_path, given=answers.stdout)
    assert scored.returncode == 0, scored.stderr
    assert [len(line["scores"]) for line in lines(scored.stdout)] == [3, 3]  # type: ignore[arg-type]


def test_equal_prompts_get_different_answers_and_flags_reach_the_sampler(
    services: dict[str, str], tmp_path: Path
):
    (tmp_path / "prompts.txt").write_text("w1 w2\nw1 w2\n")
    flags = ("--file", "prompts.txt", "--text", "--address", services["policy"], "--max-new-tokens", 9)
    sampled = [line["responses"] for line in lines(fairlead("generate", *flags, cwd=tmp_path).stdout)]
    assert sampled[0] != sampled[1]
    greedy = [
        line["responses"]
        for line in lines(fairlead("generate", *flags, "--temperature", 0, cwd=tmp_path).stdout)
    ]
    assert greedy[0] == greedy[1]
    text: str = greedy[0][0]["text"]  # type: ignore[index]
    word = text.split()[1]
    stopped = fairlead("generate", *flags, "--temperature", 0, "--stop", word, cwd=tmp_path)
    assert lines(stopped.stdout)[0]["responses"][0]["finish_reason"] == "stop"  # type: ignore[index]
    streamed = fairlead(
        *("generate", "w1 w2", "--address", services["policy"], "--max-new-tokens", 9, "--temperature", 0),
        "--stream",
        cwd=tmp_path,
    )
    assert streamed.stdout.splitlines()[1].strip() == text.strip()


@pytest.mark.parametrize(
    ("given", "flags", "error"),
    [
        ('{"prompt": "w1", "response": "w1"}\n{"prompt": "w1"}\n', (), "stdin:2: got 'the keys prompt'"),
        (
            '{"prompt": "w1"\n',
            ("../in.jsonl",),
            '../in.jsonl:1: got \'{"prompt": "w1"\', allowed: a JSON object',
        ),
        (
            "\n" + jsonl({"prompt": "w1", "response": "w1 " * 300}),
            ("../in.jsonl",),
            "../in.jsonl:2: items.text: got '303 tokens'",
        ),
        (
            jsonl({"prompt": "w1", "responses": []}),
            ("../in.jsonl",),
            "../in.jsonl:1: got '`responses` without a response'",
        ),
        ("", ("absent.jsonl",), "file: got 'absent.jsonl', allowed: a file that exists"),
        ("", ("--prompt", "w1"), "--prompt: got a file of JSON lines as well"),
        ("", ("x.txt", "--response", "w1"), "--response: got a file or --text as well"),
    ],
)
def test_bad_line_is_named_and_no_file_is_written(
    services: dict[str, str], tmp_path: Path, given: str, flags: tuple[str, ...], error: str
):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "in.jsonl").write_text(given)
    shown = fairlead(
        *("score", *flags, "--address", services["reward"], "--batch-size", 1, "--out", "out.jsonl"),
        cwd=folder,
        given=None if flags else given,
    )
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.startswith(f"error: {error}"), shown.stderr
    assert list(folder.iterdir()) == []


def test_unreachable_service_gives_exit_code_1(tmp_path: Path):
    nowhere = free_address()
    shown = fairlead(
        *("score", "--response", "w1", "--address", nowhere, "--timeout-seconds", 2), cwd=tmp_path
    )
    assert shown.returncode == 1
    assert shown.stderr.startswith(f"error: reward at {nowhere}: ")
    assert "Traceback" not in shown.stderr


def test_results_are_written_before_the_pipe_ends_and_ctrl_c_stops(services: dict[str, str], tmp_path: Path):
    command = [sys.executable, "-m", "fairlead.cli", "score", "--address", services["reward"]]
    with subprocess.Popen(
        [*command, "--batch-size", "1"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        started.stdin.write(jsonl({"prompt": "w1", "response": "w2"}))
        started.stdin.flush()
        # The writer is still running; the lines that it has written are scored.
        assert json.loads(started.stdout.readline())["response"] == "w2"
        os.kill(started.pid, signal.SIGINT)
        assert started.wait(60) == 130
        assert "Traceback" not in (started.stderr.read() if started.stderr else "")


async def test_status_asks_services_for_their_health_and_version(services: dict[str, str]):
    async def asked(name: str, address: str) -> tuple[bool | None, str]:
        process = ProcessRecord(
            name=name, state="ready", pid=os.getpid(), restarts=0, started=time.time() - 5, grpc=address
        )
        found = await status.service_status(process, live=True)
        assert found.up_seconds == pytest.approx(5, abs=20)
        return found.healthy, found.version

    assert await asked("policy-0", services["policy"]) == (True, "0-0")
    healthy, version = await asked("reward-0", services["reward"])
    assert healthy
    assert len(version) == 12
    assert await asked("reference-0", free_address()) == (False, "")
