"""`fairlead dpo` from the command line: killed and continued to the same bits, bad data, report, export."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fairlead.config import RunConfig, load
from tests.integration.test_cli import fairlead
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.stage_world import preference_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run_file(folder: Path, base: Path, *, epochs: int) -> tuple[Path, RunConfig]:
    """Write the data and the file of a run."""
    preference_run(folder)
    file = folder / "run.toml"
    file.write_text(
        "\n".join(
            [
                f'runs = "{folder / "runs"}"',
                "[data]",
                'preferences = "p.jsonl"',
                "heldout_fraction = 0.3",
                "[checkpoint]",
                "every_steps = 3",
                "[preference]",
                f'path = "{base}"',
                f"epochs = {epochs}",
                "batch_size = 8",
                "learning_rate = 1e-2",
                'device = "cpu"',
                "threads = 1",
            ]
        )
    )
    return file, load(file)


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))]


def test_killed_stage_continues_to_the_same_bits(tmp_path: Path):
    base = tiny_causal_lm(tmp_path / "base")
    whole, expected = run_file(tmp_path / "whole", base, epochs=20)
    done = fairlead("dpo", whole, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "preference has finished" in done.stdout
    file, config = run_file(tmp_path / "cut", base, epochs=20)
    metrics = config.folder.metrics("preference")
    kills = 0
    while kills < 3:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer.preference", "--config", str(file)], stderr=subprocess.DEVNULL
        )
        begun = len(metrics.read_bytes().splitlines()) if metrics.exists() else 0
        deadline = time.monotonic() + 600
        while process.poll() is None:
            assert time.monotonic() < deadline
            if metrics.exists() and len(metrics.read_bytes().splitlines()) > begun + 8:
                process.kill()
                break
            time.sleep(0.005)
        process.wait()
        if process.returncode == 0:
            break
        kills += 1
    again = fairlead("dpo", file, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert kills >= 2
    assert digests(config.folder.preference_model) == digests(expected.folder.preference_model)
    results = [json.loads(one.folder.result("preference").read_text()) for one in (config, expected)]
    assert [result | {"seconds": 0} for result in results] == [results[0] | {"seconds": 0}] * 2
    finished = fairlead("dpo", file, cwd=tmp_path)
    assert "already finished" in finished.stdout + finished.stderr
    status = fairlead("status", config.folder.root, "--json", cwd=tmp_path)
    assert json.loads(status.stdout)["stage"] == "preference"
    planned = fairlead("plan", file, "--stage", "preference", "--json", cwd=tmp_path)
    assert [one["stage"] for one in json.loads(planned.stdout)["stages"]] == ["preference"]
    report = fairlead("report", config.folder.root, cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert "Accuracy of implied rewards" in (config.folder.root / "report.html").read_text()
    exported = fairlead(
        *("export", config.folder.root, "out", "--which", "preference", "--only", "policy"), cwd=tmp_path
    )
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "out" / "policy" / "model.safetensors").is_file()


def test_bad_data_ends_with_code_2_and_one_line(tmp_path: Path):
    base = tiny_causal_lm(tmp_path / "base")
    file, config = run_file(tmp_path / "run", base, epochs=1)
    data = config.base / "p.jsonl"
    data.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"}) + "\n")
    failed = fairlead("dpo", file, cwd=tmp_path)
    assert failed.returncode == 2
    assert "p.jsonl:1" in failed.stderr
    kto = fairlead("dpo", file, "--set", "preference.loss=kto", "--set", "data.thumbs=no.jsonl", cwd=tmp_path)
    assert kto.returncode == 2
    assert "no.jsonl" in kto.stderr
    ignored = fairlead("dpo", file, "--set", "preference.desirable_weight=2", cwd=tmp_path)
    assert ignored.returncode == 2
    assert "desirable_weight" in ignored.stderr
