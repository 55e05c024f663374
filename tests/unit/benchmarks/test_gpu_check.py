"""The GPU check: its sections run on a CPU with tiny models, and one that fails does not stop the others."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import figures
from benchmarks.gpu_check.figures import Figure


def check(folder: Path, *arguments: str) -> tuple[int, Mapping[str, dict]]:
    """Run the check; return its exit code and what became of each section."""
    code = command.main(["--device", "cpu", "--tiny", "--out", str(folder), *arguments])
    report = json.loads((folder / "gpu_check.json").read_text())
    return code, {section["section"]: section for section in report["sections"]}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Replace the interpreter of the sections by a script: tested is what the check does with them."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\n"
        'echo \'{"name": "rate", "value": 2.5, "unit": "tokens/s", "note": "a|b"}\' > "$4"\n'
        'case $3 in swap) printf \'{"name": "half\' >> "$4"; exit 3;; idle) sleep 600;; esac\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


@pytest.mark.usefixtures("stand_in")
def test_section_that_fails_or_hangs_keeps_its_figures_and_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(command, "SECTIONS", {"swap": 30, "idle": 2, "parity": 30})
    code, found = check(tmp_path / "out")
    assert code == 1
    assert {name: section["failure"] for name, section in found.items()} == {
        "swap": "exit code 3; sections.log has its output",
        "idle": "stopped after 2 s",
        "parity": "",
    }
    assert all(len(section["figures"]) == 1 for section in found.values())
    table = (tmp_path / "out" / "gpu_check.md").read_text()
    assert "| parity | rate | 2.5 | tokens/s | a/b |" in table
    assert "- idle: 2 s, not complete: stopped after 2 s" in table


@pytest.mark.usefixtures("stand_in")
def test_sections_without_time_are_named(tmp_path: Path):
    code, found = check(tmp_path / "out", "parity", "swap", "--seconds", "0.5")
    assert code == 1
    assert [section["failure"] for section in found.values()] == ["no time was left for it"] * 2


def test_unknown_section_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        command.main(["speed"])
    assert "no section 'speed'; there are environment, parity" in capsys.readouterr().err


def test_figures_outlive_an_incomplete_line(tmp_path: Path):
    file = tmp_path / "figures.jsonl"
    assert figures.read(file) == []
    expected = [Figure("a", 1.0, "s"), figures.skipped("b", "needs the package vllm")]
    for figure in expected:
        figure.append_to(file)
    with file.open("a") as lines:
        lines.write('{"name": "c"')
    assert figures.read(file) == expected


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_section_measures_on_a_cpu(tmp_path: Path):
    code, found = check(tmp_path, "--seconds", "1500", "--scale-limits", "20")
    log = (tmp_path / "sections.log").read_text()
    assert code == 0, log
    assert found.keys() == command.SECTIONS.keys()
    for name, section in found.items():
        values = [figure["value"] for figure in section["figures"] if figure["value"] is not None]
        assert values, name
        assert all(value >= 0 for value in values), name
    # Ways of decoding agree, and so do scores with and without padding.
    differences = [figure["value"] for figure in found["parity"]["figures"]]
    assert max(differences) < 1e-5
    waits = [figure["value"] for figure in found["idle"]["figures"]]
    assert len(waits) == 3
    assert None not in waits, log
