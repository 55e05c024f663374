"""`fairlead score` with files, a real service and real kills: formats, invalid lines, interruptions."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner, Result

from fairlead import RewardClient, TextPair, WholeText
from fairlead.cli.main import app
from tests import architectures
from tests.service_process import Process, SharedServices, Starter


@pytest.fixture(scope="module")
def services(
    shared: SharedServices, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Process]]:
    folder = tmp_path_factory.mktemp("services")
    start = Starter(folder)
    try:
        chat = architectures.reward_model("qwen3", folder / "chat")
        service = start("reward", chat, **{"reward.calibration_temperature": 2.0})
        plain = shared.ready("reward")["reward"]
        service.until(lambda: service.get("/readyz")[0] == 200, seconds=110)
        yield {"plain": plain, "chat": service}
    finally:
        start.stop()


def streamed_requests(process: Process) -> int:
    """Return the number of requests that the service received over streams."""
    name = 'grpc_server_msg_received_total{grpc_method="ScoreStream"'
    lines = [line for line in process.get("/metrics")[1].splitlines() if line.startswith(name)]
    return sum(int(float(line.split()[-1])) for line in lines)


def version_of(process: Process) -> str:
    with RewardClient(process.address) as client:
        return client.info().model_version


def score(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def write(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def numbered(count: int) -> list[dict]:
    return [{"prompt": f"w{n % 50} w{n % 7}", "response": f"w{n % 11}", "id": n} for n in range(count)]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def test_every_format_gets_the_scores_of_the_service(services, tmp_path):
    inputs = [
        {"prompt": "where ?", "response": "here ."},
        {"prompt": "where ?", "completion": "there ."},
        {"prompt": "where ?", "responses": ["here .", "sorry"]},
        {"prompt": "where ?", "responses": [{"text": "a", "rank": 2}, {"text": "b", "rank": 1}]},
        {"prompt": "where ?", "chosen": "here .", "rejected": "sorry"},
        {"chosen": [user("where ?"), assistant("here .")], "rejected": [user("where ?"), assistant("no")]},
        {"messages": [user("hi"), assistant("yes ?"), user("where ?"), assistant("here .")]},
        {"prompt": [user("where ?")], "completion": [assistant("here .")]},
        {"prompt": [user("where ?")], "responses": ["here ."]},
        {"text": "where ? here ."},
    ]
    file, out = write(tmp_path / "in.jsonl", *inputs), tmp_path / "deep" / "out.jsonl"
    service = services["chat"]
    result = score(file, "--address", service.address, "--out", out)
    assert result.exit_code == 0, result.output
    found = read(out)
    assert [{key: line[key] for key in given} for line, given in zip(found, inputs, strict=True)] == inputs
    assert {line["model_version"] for line in found} == {version_of(service)}
    with RewardClient(service.address) as client:

        def expect(*items):
            return pytest.approx(list(client.score(items).scores), abs=1e-5)

        turns = tuple(client_message(turn) for turn in inputs[6]["messages"][:-1])
        answer = TextPair("", "here .", (client_message(user("where ?")),))
        assert [found[0]["score"]] == expect(("where ?", "here ."))
        assert [found[1]["score"]] == expect(("where ?", "there ."))
        assert found[2]["scores"] == expect(("where ?", "here ."), ("where ?", "sorry"))
        assert found[2]["best"] == max((0, 1), key=found[2]["scores"].__getitem__)
        assert found[3]["scores"] == expect(("where ?", "a"), ("where ?", "b"))
        pair = [found[4]["score_chosen"], found[4]["score_rejected"]]
        assert pair == expect(("where ?", "here ."), ("where ?", "sorry"))
        assert found[4]["margin"] == pytest.approx(pair[0] - pair[1])
        assert [found[5]["score_chosen"]] == expect(answer)
        assert [found[6]["score"]] == expect(TextPair("", "here .", turns))
        assert [found[7]["score"]] == expect(answer)
        assert found[8]["scores"] == expect(answer)
        assert [found[9]["score"]] == expect(WholeText("where ? here ."))
    calibrated = score(file, "--address", service.address, "--calibrated")
    first = json.loads(calibrated.stdout.splitlines()[0])
    assert first["score"] == pytest.approx(found[0]["score"] / 2.0, abs=1e-5)
    assert first["calibration_temperature"] == 2.0


def client_message(turn):
    from fairlead import Message

    return Message(turn["role"], turn["content"])


def test_compression_and_replicas_change_neither_scores_nor_order(services, tmp_path):
    lines = numbered(500)
    plain = write(tmp_path / "in.jsonl", *lines)
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    parquet.write_table(pa.Table.from_pylist(lines), tmp_path / "in.parquet")
    both = ("--address", services["plain"].address, "--address", services["plain"].address)
    results = []
    for place, source in enumerate((plain, packed, tmp_path / "in.parquet")):
        out = tmp_path / f"{place}.jsonl"
        result = score(source, *both, "--batch-size", 7, "--out", out)
        assert result.exit_code == 0, result.output
        results.append(read(out))
    assert [[line["id"] for line in found] for found in results] == [list(range(500))] * 3
    for one, other, third in zip(*results, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["score"] == pytest.approx(third["score"], abs=1e-5)
    assert streamed_requests(services["plain"]) > 3 * 500 / 7


def test_all_invalid_lines_are_reported_before_scoring(services, tmp_path):
    service, out = services["plain"], tmp_path / "out.jsonl"
    good = {"prompt": "w1", "response": "w2"}
    file = write(tmp_path / "in.jsonl", good, {"prompt": "w1"}, good, {"prompt": 3, "response": "w1"}, good)
    file.write_text(file.read_text() + "{\n")
    before = streamed_requests(service)
    result = score(file, "--address", service.address, "--out", out)
    assert result.exit_code == 2
    for number in (2, 4, 6):
        assert f"error: {file}:{number}: " in result.stderr
    assert streamed_requests(service) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]
    result = score(file, "--address", service.address, "--out", out, "--skip-bad")
    assert result.exit_code == 0
    assert result.stderr.count(f"skipped: {file}:") == 3
    assert len(read(out)) == 3


def test_line_refused_by_the_service_is_reported_and_can_be_skipped(services, tmp_path):
    lines = numbered(40)
    lines[30]["response"] = "w1 " * 300
    file, out = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    flags = (file, "--address", services["plain"].address, "--out", out, "--batch-size", 4)
    result = score(*flags)
    assert result.exit_code == 2
    assert f"error: {file}:31: items.text: got '304 tokens'" in result.stderr.replace('"', "")
    assert not out.exists()
    assert [line["id"] for line in read(partial(out))] == list(range(28)), "finished lines are kept"
    result = score(*flags, "--skip-bad")
    assert result.exit_code == 0
    assert f"skipped: {file}:31: " in result.stderr
    assert [line["id"] for line in read(out)] == [n for n in range(40) if n != 30]
    assert not partial(out).exists()


def interrupted(number: int, file: Path, out: Path, address: str, *, at_least: int) -> subprocess.Popen[str]:
    """Start a run; send it a signal once it has written `at_least` lines."""
    flags = [str(file), "--address", address, "--out", str(out), "--batch-size", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fairlead.cli", "score", *flags], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 100
    while not partial(out).exists() or partial(out).read_bytes().count(b"\n") < at_least:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, number)
    return process


def test_killed_or_interrupted_run_continues_where_it_stopped(services, tmp_path):
    """SIGKILL, a torn last line, Ctrl-C, then the end: every line is scored once, and the order is kept."""
    service = services["plain"]
    file, out = write(tmp_path / "in.jsonl", *numbered(1_200)), tmp_path / "out.jsonl"
    with interrupted(signal.SIGKILL, file, out, service.address, at_least=150) as killed:
        assert killed.wait(60) == -signal.SIGKILL
    first = partial(out).read_text().splitlines(keepends=True)
    assert 150 <= len(first) < 1_200
    assert not out.exists()
    # A last line as if the kill had interrupted a write, and a first score that no service returns.
    marked = {**json.loads(first[0]), "score": 123.0}
    partial(out).write_text(json.dumps(marked) + "\n" + "".join(first[1:149]) + first[149][:20])
    with interrupted(signal.SIGINT, file, out, service.address, at_least=300) as stopped:
        printed = stopped.communicate(timeout=60)[1]
        assert stopped.returncode == 130
    assert f"the same command continues and writes {out}" in printed
    assert "Traceback" not in printed
    half = len(read(partial(out)))
    before = streamed_requests(service)
    result = score(file, "--address", service.address, "--out", out, "--batch-size", 1)
    assert result.exit_code == 0, result.output
    found = read(out)
    assert [line["id"] for line in found] == list(range(1_200))
    assert found[0]["score"] == 123.0
    assert streamed_requests(service) - before == 1_200 - half
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    again = score(file, "--address", service.address, "--out", out, "--batch-size", 64)
    assert again.exit_code == 0
    assert read(out)[0]["score"] != 123.0, "a complete file is scored again"


def test_partial_result_is_continued_only_by_the_same_run(services, tmp_path):
    out = tmp_path / "out.jsonl"
    file = write(tmp_path / "in.jsonl", *numbered(6))
    version = version_of(services["plain"])
    flags = (file, "--address", services["plain"].address, "--out", out)

    def lines(**changed: object) -> list[dict]:
        return [{**line, "score": 1.0, "model_version": version, **changed} for line in numbered(3)]

    for done, message in (
        (lines(prompt="other"), "whose line 1 does not match line 1 of the input"),
        ([*lines(), *lines()], "whose line 4 does not match line 4 of the input"),
        (lines(model_version="old"), "whose line 3 was scored by model 'old', but the service has"),
        (lines(calibration_temperature=2.0), "whose line 3 is calibrated"),
    ):
        write(partial(out), *done)
        result = score(*flags)
        assert result.exit_code == 2, result.output
        assert message in result.stderr.replace("\n", " ").replace('"', "").replace("\\", ""), result.stderr
        assert read(partial(out)) == done
        assert not out.exists()
    result = score(*flags, "--restart")
    assert result.exit_code == 0
    assert [line["id"] for line in read(out)] == list(range(6))
    write(partial(out), *lines())
    with partial(out).open("r+b") as held:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX)
        result = score(*flags)
    assert result.exit_code == 2
    assert "a file that another run is writing" in result.stderr.replace("\n", " ")


@pytest.mark.slow
def test_model_flag_serves_the_model_during_the_command(shared: SharedServices, tmp_path):
    model = shared.models["reward"]
    file, out = write(tmp_path / "in.jsonl", *numbered(20)), tmp_path / "out.jsonl"
    result = score(file, "--model", model, "--out", out, "--timeout-seconds", 100)
    assert result.exit_code == 0, result.output
    assert len(read(out)) == 20
    result = score(file, "--model", tmp_path, "--out", out)
    assert result.exit_code == 2
    assert "ended with exit code 2" in result.stderr
    for flags in ((), ("--model", model, "--address", "a:1")):
        result = score(file, *flags)
        assert result.exit_code == 2
        assert "--address: got both or neither" in result.stderr
