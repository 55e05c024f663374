"""`fairlead score` of files: every format, bad lines, interruptions. A real service, real kills."""

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
from tests.service_process import Process, Starter
from tests.tiny import tiny_reward_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reward_model(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def services(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    folder = tmp_path_factory.mktemp("services")
    start = Starter(folder)
    try:
        chat = architectures.reward_model("qwen3", folder / "chat")
        found = {
            "plain": start("reward", model),
            "chat": start("reward", chat, **{"reward.calibration_temperature": 2.0}),
        }
        for process in found.values():
            process.until(lambda ready=process: ready.get("/readyz")[0] == 200, seconds=110)
        yield found
    finally:
        start.stop()


def num_asked(process: Process) -> int:
    """Requests that came over streams."""
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


def test_every_format_is_scored_as_the_service_scores_it(services, tmp_path):
    asked = [
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
    file, out = write(tmp_path / "in.jsonl", *asked), tmp_path / "deep" / "out.jsonl"
    world = services["chat"]
    shown = score(file, "--address", world.address, "--out", out)
    assert shown.exit_code == 0, shown.output
    found = read(out)
    assert [{key: line[key] for key in given} for line, given in zip(found, asked, strict=True)] == asked
    assert {line["model_version"] for line in found} == {version_of(world)}
    with RewardClient(world.address) as client:

        def expect(*items):
            return pytest.approx(list(client.score(items).scores), abs=1e-5)

        turns = tuple(client_message(turn) for turn in asked[6]["messages"][:-1])
        said = TextPair("", "here .", (client_message(user("where ?")),))
        assert [found[0]["score"]] == expect(("where ?", "here ."))
        assert [found[1]["score"]] == expect(("where ?", "there ."))
        assert found[2]["scores"] == expect(("where ?", "here ."), ("where ?", "sorry"))
        assert found[2]["best"] == max((0, 1), key=found[2]["scores"].__getitem__)
        assert found[3]["scores"] == expect(("where ?", "a"), ("where ?", "b"))
        pair = [found[4]["score_chosen"], found[4]["score_rejected"]]
        assert pair == expect(("where ?", "here ."), ("where ?", "sorry"))
        assert found[4]["margin"] == pytest.approx(pair[0] - pair[1])
        assert [found[5]["score_chosen"]] == expect(said)
        assert [found[6]["score"]] == expect(TextPair("", "here .", turns))
        assert [found[7]["score"]] == expect(said)
        assert found[8]["scores"] == expect(said)
        assert [found[9]["score"]] == expect(WholeText("where ? here ."))
    divided = score(file, "--address", world.address, "--calibrated")
    first = json.loads(divided.stdout.splitlines()[0])
    assert first["score"] == pytest.approx(found[0]["score"] / 2.0, abs=1e-5)
    assert first["calibration_temperature"] == 2.0


def client_message(turn):
    from fairlead import Message

    return Message(turn["role"], turn["content"])


def test_gzip_and_parquet_and_several_replicas_give_the_same_in_order(services, tmp_path):
    lines = numbered(500)
    plain = write(tmp_path / "in.jsonl", *lines)
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    parquet.write_table(pa.Table.from_pylist(lines), tmp_path / "in.parquet")
    both = ("--address", services["plain"].address, "--address", services["plain"].address)
    results = []
    for place, source in enumerate((plain, packed, tmp_path / "in.parquet")):
        out = tmp_path / f"{place}.jsonl"
        shown = score(source, *both, "--batch-size", 7, "--out", out)
        assert shown.exit_code == 0, shown.output
        results.append(read(out))
    assert [[line["id"] for line in found] for found in results] == [list(range(500))] * 3
    for one, other, third in zip(*results, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["score"] == pytest.approx(third["score"], abs=1e-5)
    assert num_asked(services["plain"]) > 3 * 500 / 7


def test_bad_lines_are_all_named_before_anything_is_scored(services, tmp_path):
    world, out = services["plain"], tmp_path / "out.jsonl"
    good = {"prompt": "w1", "response": "w2"}
    file = write(tmp_path / "in.jsonl", good, {"prompt": "w1"}, good, {"prompt": 3, "response": "w1"}, good)
    file.write_text(file.read_text() + "{\n")
    before = num_asked(world)
    shown = score(file, "--address", world.address, "--out", out)
    assert shown.exit_code == 2
    for number in (2, 4, 6):
        assert f"error: {file}:{number}: " in shown.stderr
    assert num_asked(world) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]
    shown = score(file, "--address", world.address, "--out", out, "--skip-bad")
    assert shown.exit_code == 0
    assert shown.stderr.count(f"skipped: {file}:") == 3
    assert len(read(out)) == 3


def test_a_line_that_the_service_refuses_is_named_and_can_be_left_out(services, tmp_path):
    lines = numbered(40)
    lines[30]["response"] = "w1 " * 300
    file, out = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    flags = (file, "--address", services["plain"].address, "--out", out, "--batch-size", 4)
    shown = score(*flags)
    assert shown.exit_code == 2
    assert f"error: {file}:31: items.text: got '304 tokens'" in shown.stderr.replace('"', "")
    assert not out.exists()
    assert [line["id"] for line in read(partial(out))] == list(range(28)), "what was done is kept"
    shown = score(*flags, "--skip-bad")
    assert shown.exit_code == 0
    assert f"skipped: {file}:31: " in shown.stderr
    assert [line["id"] for line in read(out)] == [n for n in range(40) if n != 30]
    assert not partial(out).exists()


def interrupted(number: int, file: Path, out: Path, address: str, *, at_least: int) -> subprocess.Popen[str]:
    """A run that got a signal once so many lines were done."""
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


def test_a_run_that_was_killed_or_interrupted_goes_on_where_it_stopped(services, tmp_path):
    """Kill -9, a torn last line, Ctrl-C, and the end: every line once, in order, none scored twice."""
    world = services["plain"]
    file, out = write(tmp_path / "in.jsonl", *numbered(6_000)), tmp_path / "out.jsonl"
    with interrupted(signal.SIGKILL, file, out, world.address, at_least=300) as killed:
        assert killed.wait(60) == -signal.SIGKILL
    first = partial(out).read_text().splitlines(keepends=True)
    assert 300 <= len(first) < 6_000
    assert not out.exists()
    # As if the kill had come in the middle of a write; and a mark that no service would give.
    marked = {**json.loads(first[0]), "score": 123.0}
    partial(out).write_text(json.dumps(marked) + "\n" + "".join(first[1:299]) + first[299][:20])
    with interrupted(signal.SIGINT, file, out, world.address, at_least=700) as stopped:
        said = stopped.communicate(timeout=60)[1]
        assert stopped.returncode == 130
    assert f"the same command continues and writes {out}" in said
    assert "Traceback" not in said
    half = len(read(partial(out)))
    before = num_asked(world)
    shown = score(file, "--address", world.address, "--out", out, "--batch-size", 1)
    assert shown.exit_code == 0, shown.output
    found = read(out)
    assert [line["id"] for line in found] == list(range(6_000))
    assert found[0]["score"] == 123.0
    assert num_asked(world) - before == 6_000 - half
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    again = score(file, "--address", world.address, "--out", out, "--batch-size", 64)
    assert again.exit_code == 0
    assert read(out)[0]["score"] != 123.0, "a whole file is made anew"


def test_what_is_done_is_gone_on_with_only_by_the_same_run(services, tmp_path):
    out = tmp_path / "out.jsonl"
    file = write(tmp_path / "in.jsonl", *numbered(6))
    version = version_of(services["plain"])
    flags = (file, "--address", services["plain"].address, "--out", out)

    def lines(**changed: object) -> list[dict]:
        return [{**line, "score": 1.0, "model_version": version, **changed} for line in numbered(3)]

    for done, said in (
        (lines(prompt="other"), "whose line 1 does not match line 1 of the input"),
        ([*lines(), *lines()], "whose line 4 does not match line 4 of the input"),
        (lines(model_version="old"), "whose line 3 was scored by model 'old', but the service has"),
        (lines(calibration_temperature=2.0), "whose line 3 is calibrated"),
    ):
        write(partial(out), *done)
        shown = score(*flags)
        assert shown.exit_code == 2, shown.output
        assert said in shown.stderr.replace("\n", " ").replace('"', "").replace("\\", ""), shown.stderr
        assert read(partial(out)) == done
        assert not out.exists()
    shown = score(*flags, "--restart")
    assert shown.exit_code == 0
    assert [line["id"] for line in read(out)] == list(range(6))
    write(partial(out), *lines())
    with partial(out).open("r+b") as held:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX)
        shown = score(*flags)
    assert shown.exit_code == 2
    assert "a file that another run is writing" in shown.stderr.replace("\n", " ")


@pytest.mark.slow
def test_a_model_of_ones_own_is_served_for_the_time_of_the_command(model, tmp_path):
    file, out = write(tmp_path / "in.jsonl", *numbered(20)), tmp_path / "out.jsonl"
    shown = score(file, "--model", model, "--out", out, "--timeout-seconds", 100)
    assert shown.exit_code == 0, shown.output
    assert len(read(out)) == 20
    shown = score(file, "--model", tmp_path, "--out", out)
    assert shown.exit_code == 2
    assert "ended with code 2" in shown.stderr
    for flags in ((), ("--model", model, "--address", "a:1")):
        shown = score(file, *flags)
        assert shown.exit_code == 2
        assert "--address: got both or neither" in shown.stderr
