"""The comparison of engines: what a run depends on, its table, and the error without vLLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import vllm_learning
from benchmarks.result import Settings
from benchmarks.vllm_learning import ARMS, Arm, Learned, LearningRun
from fairlead.errors import ConfigError


def run_of(arm: Arm, seed: int, *, quick: bool = False) -> LearningRun:
    return LearningRun(Path("source"), arm, seed, quick, deadline=0.0)


def test_key_depends_on_engine_ranks_seed_and_size() -> None:
    runs = [run_of(arm, seed, quick=quick) for arm in ARMS for seed in (0, 1) for quick in (False, True)]
    assert len({run.key() for run in runs}) == len(runs)
    assert runs[0].key() == run_of(ARMS[0], 0).key()


def test_report_has_a_row_per_run_and_means_over_seeds() -> None:
    def learned(gold: float, mismatch: float) -> Learned:
        return Learned(gold=gold, proxy=2.0, kl=3.0, mismatch=mismatch, trained=6144, other=0)

    finished = {
        run_of(ARMS[1], 0): learned(0.5, 1e-6),
        run_of(ARMS[0], 0): learned(1.0, 2e-6),
        run_of(ARMS[0], 1): learned(2.0, 3e-6),
    }
    lines = vllm_learning.report(vllm_learning.by_arm(finished)).splitlines()
    assert lines[2:5] == [
        "| embedded, 1 rank | 0 | 1.00 | 2.00 | 3.00 | 2.0e-06 | 6,144 | 0 |",
        "| embedded, 1 rank | 1 | 2.00 | 2.00 | 3.00 | 3.0e-06 | 6,144 | 0 |",
        "| vLLM, 1 rank | 0 | 0.50 | 2.00 | 3.00 | 1.0e-06 | 6,144 | 0 |",
    ]
    # Student's t with one degree of freedom: 12.71 · 0.707 / √2.
    mean = "| embedded, 1 rank | all | 1.50 ± 6.35 | 2.00 ± 0.00 | 3.00 ± 0.00 | 3.0e-06 | 12,288 | 0 |"
    assert lines[5:] == [mean]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_error_without_vllm_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="make vllm-env"):
        vllm_learning.run(Settings(torch.device("cpu")))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_benchmark_that_cannot_run_keeps_the_file_of_an_earlier_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "vllm.json"
    file.write_text("{}")
    before = file.stat().st_mtime_ns
    assert command.main(["vllm", "--json", str(file)]) == 2
    assert "make vllm-env" in capsys.readouterr().err
    assert (file.read_text(), file.stat().st_mtime_ns) == ("{}", before)
