"""docs/scoring-api.md: run every command and program on the page against real processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service_process import free_address
from tests.tiny import tiny_reward_model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scoring-api.md").read_text()
BLOCKS = re.findall(r"^```(\w+)( serve)?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


class Reader:
    """Runs the blocks of the page in its own folder, on free ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {port: free_address().split(":")[1] for port in ("5002", "8080")}
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        (bin_folder / "fairlead").write_text(f'#!/bin/sh\nexec {sys.executable} -m fairlead.cli "$@"\n')
        (bin_folder / "pip").write_text("#!/bin/sh\n")
        for program in bin_folder.iterdir():
            program.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "FAIRLEAD_OBSERVE__METRICS_PORT": "-1",
        }

    def here(self, text: str) -> str:
        for port, free in self.ports.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
        return text

    def run(self, language: str, text: str) -> str:
        command = ["bash", "-euc"] if language == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, self.here(text)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def wait_until_ready(self, seconds: float = 100) -> None:
        deadline = time.monotonic() + seconds
        url = f"http://127.0.0.1:{self.ports['8080']}/readyz"
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=30):
                return
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    tiny_reward_model(folder / "models" / "reward")
    reader = Reader(folder)
    (serve,) = [text for _, serves, text in BLOCKS if serves]
    with (folder / "log").open("wb") as log:
        shell = subprocess.Popen(
            ["bash", "-euc", reader.here(serve) + "wait"],
            cwd=folder,
            env=reader.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        reader.wait_until_ready()
        yield reader
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        try:
            shell.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)


def keys_of(value: object) -> object:
    """Return the structure of a JSON value: its keys, without the values."""
    if isinstance(value, dict):
        return {key: keys_of(one) for key, one in value.items()}
    if isinstance(value, list):
        return [keys_of(one) for one in value]
    return None


def test_every_block_runs_and_responses_have_the_documented_fields(reader: Reader):
    shown = {"bash": 0, "python": 0}
    last = ""
    for language, serves, text in BLOCKS:
        if serves:
            continue
        if language == "json":
            assert keys_of(json.loads(last)) == keys_of(json.loads(text))
            continue
        last = reader.run(language, text)
        shown[language] += 1
        if "curl" in text:
            for answer in re.split(r"(?<=\})(?=\{)", last):
                assert "error" not in json.loads(answer), answer
    assert shown["bash"] >= 6
    assert shown["python"] >= 2
    assert json.loads((reader.folder / "keys.json").read_text())["keys"][0]["id"] == "search"


def test_error_table_lists_every_status():
    from fairlead import errors

    section = PAGE[PAGE.index("## Errors") :].split("\n## ")[0]
    cells = ",".join(re.findall(r"^\| ([\d, ]+) \|", section, re.M))
    statuses = {int(number) for number in cells.split(",")}
    used = {errors.HTTP_STATUS[status] for status in errors.GRPC_STATUS.values()} - {409}
    assert statuses == used | {405, 413, 500}
    for status in set(errors.GRPC_STATUS.values()):
        if errors.HTTP_STATUS[status] != 409:
            assert f"`{status.name.lower()}`" in section


def test_capacity_rows_are_marked_and_estimates_follow_the_formula():
    table = PAGE[PAGE.index("| model | on | dtype") :].split("\n\n")[0].splitlines()[2:]
    peaks = {"H100": 989e12, "A100": 312e12, "L4": 121e12}
    kinds = []
    for row in table:
        model, device, dtype, speed, kind = (cell.strip() for cell in row.strip("|").split("|"))
        kinds.append(kind)
        assert kind in ("measured", "estimated")
        assert dtype in ("float32", "bfloat16")
        if kind == "estimated":
            billions = float(re.findall(r"([\d.]+) B", model)[0])
            peak = next(value for name, value in peaks.items() if name in device)
            expected = 0.35 * peak / (2 * billions * 1e9)
            assert float(speed.replace(",", "")) == pytest.approx(expected, rel=0.05), row
    assert set(kinds) == {"measured", "estimated"}
