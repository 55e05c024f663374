"""Every benchmark runs in tiny sizes, where its numbers mean nothing. The one of TRL is run by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import (
    lengths,
    one_process,
    quickstart,
    scoring_path,
    stages,
    triton_baselines,
    triton_server,
)
from benchmarks.quickstart import Usage
from benchmarks.result import Result, Settings, interleaved
from benchmarks.serving import workload
from fairlead.config.saving import save
from fairlead.errors import ConfigError
from fairlead.rounds.steps import Steps


@pytest.mark.parametrize(
    "name",
    [
        # Real servers, each a process that imports torch.
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("scoring", "overload")),
        *(name for name in [*command.SHORT, *command.TUNING] if name != "scoring"),
    ],
)
def test_short_benchmark_measures_value_and_baseline(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "out" / "found.json"
    assert command.main([name, "--quick", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found
    for entry in found.values():
        assert entry.keys() == {"value", "unit", "baseline", "ratio"}
        assert min(entry["value"], entry["baseline"]) > 0
        assert entry["ratio"] == pytest.approx(entry["value"] / entry["baseline"])
    shown = capsys.readouterr().out
    assert all(key in shown for key in found)


def test_scoring_path_is_measured_in_this_process():
    found = scoring_path.run(Settings(torch.device("cpu"), quick=True))
    assert found.keys() == {"scoring", "scoring_cpu"}
    assert min(min(result.value, result.baseline) for result in found.values()) > 0


@pytest.mark.parametrize("make", [workload.mixed, workload.shared])
def test_requests_of_two_seeds_have_equal_lengths_and_different_tokens(make):
    one, other = (make(12, seed=seed, vocabulary=4_096) for seed in (1, 2))
    assert one == make(12, seed=1, vocabulary=4_096)
    sizes = [[[(len(p), len(r)) for p, r in request] for request in turn] for turn in (one, other)]
    assert sizes[0] == sizes[1]
    assert {request[0][0] for request in one}.isdisjoint(request[0][0] for request in other)
    assert all(len({prompt for prompt, _ in request}) == 1 for request in one)


@pytest.mark.slow  # starts a dozen processes
def test_weight_transfer_is_measured(tmp_path: Path):
    file = tmp_path / "found.json"
    assert command.main(["weights", "--quick", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found.keys() >= {"weights_fetch", "weights_fetch_cpu", "weights_relay_8", "swap_longest"}
    assert all(min(entry["value"], entry["baseline"]) > 0 for entry in found.values())


@pytest.mark.slow  # starts many processes
@pytest.mark.timeout(600)
def test_queue_scale_is_measured(tmp_path: Path):
    file = tmp_path / "found.json"
    assert command.main(["scale", "--quick", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found.keys() == {
        f"scale_{name}" for name in ("workers", "limit", "most", "queue_limit", "queue_cost")
    }
    assert all(min(entry["value"], entry["baseline"]) > 0 for entry in found.values())


@pytest.mark.slow
def test_services_are_compared_with_ppo_in_one_process(source: Path, tmp_path: Path):
    file = tmp_path / "found.json"
    assert command.main(["services", "--quick", "--run", str(source), "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found.keys() == {"services_wall", "services_cpu"}
    assert all(min(entry["value"], entry["baseline"]) > 0 for entry in found.values())


@pytest.mark.slow
def test_triton_batching_variants_are_measured_if_triton_is_available(tmp_path: Path):
    try:
        triton_server.environment()
    except triton_server.NoTriton as error:
        pytest.skip(f"Triton is not available: {error}")
    file = tmp_path / "found.json"
    assert command.main(["triton", "--quick", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found.keys() == {f"{name}{clock}" for name in triton_baselines.VARIANTS for clock in ("", "_cpu")}
    assert all(min(entry["value"], entry["baseline"]) > 0 for entry in found.values())


def test_ppo_in_one_process_generates_with_the_weights_it_trains(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sizes = {"ppo.updates": 3, "ppo.batch_size": 8, "ppo.mini_batch_size": 4}
    save(quickstart.config(quickstart.settings(source, tmp_path, "loop", sizes)), tmp_path / "loop.toml")
    one_process.main(["--config", str(tmp_path / "loop.toml")])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 3
    # Policy and reference are equal before the first step and differ after it.
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert all(abs(row["kl"]) > 1e-4 for row in rows[1:])
    assert sorted(row["cpu_seconds"] for row in rows) == [row["cpu_seconds"] for row in rows]


def test_cpu_time_is_counted_by_process_and_interval():
    program = "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass\n"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}]); print('said')"
    usage, output, code = quickstart.watched([sys.executable, "-c", child])
    assert (output, code) == ("said\n", 0)
    assert 0.5 < usage.total < 2.0
    whole = sum(usage.between(usage.times[0], usage.times[-1]).values())
    half = sum(usage.between(usage.times[0], usage.times[len(usage.times) // 2]).values())
    assert 0 < half < whole <= usage.total


def test_run_is_measured_from_first_to_last_update():
    usage = Usage(
        times=[10.0, 11.0, 15.0, 16.0], spent=[{"a": 1.0}, {"a": 2.0}, {"a": 4.0, "b": 2.0}, {"a": 9.0}]
    )
    lines = ["a word", *(json.dumps({"time": t, "reward": t / 10, "kl": t}) for t in (11.0, 12.5, 15.0))]
    found = quickstart.measured(lines, usage, begun=5.0)
    assert (found.updates, found.seconds, found.first_reward, found.last_reward) == (2, 2.0, 1.1, 1.5)
    assert found.by_command == {"a": 1.0, "b": 1.0}
    assert found.cpu_seconds == 2.0
    assert (found.whole_seconds, found.whole_cpu_seconds) == (11.0, 9.0)


def test_stages_are_reported_with_their_cpu_time(source: Path, tmp_path: Path):
    settings = Settings(torch.device("cpu"), source=source)
    (source / "stages.json").write_text(json.dumps({"key": "", "seconds": {"sft": 2.0}}))
    with pytest.raises(ConfigError, match="without CPU times of sft"):
        stages.run(settings)
    program = [sys.executable, "-c", "sum(range(10**7))"]
    timed = Steps(
        tmp_path / "timed" / "stages.json", key="k", verb="quickstart", total=1, show=lambda _: None
    )
    timed.run("sft", "a child works", lambda: subprocess.run(program, check=True))
    (source / "stages.json").write_text((tmp_path / "timed" / "stages.json").read_text())
    found = stages.run(settings)
    assert found.keys() == {"stages_sft", "stages_whole"}
    assert 0.05 < found["stages_sft"].baseline == found["stages_whole"].baseline
    assert stages.run(settings) == found


def test_folder_that_is_not_a_quickstart_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="without config.toml, sft/config.json"):
        quickstart.ensure(tmp_path)


def test_length_groups_depend_on_the_seed_and_respect_the_maximum():
    rows = json.loads(lengths.FILE.read_text())
    assert len(rows) == 684
    assert sum(map(len, rows)) == 684 + 5_471
    groups = lengths.groups(100, longest=300)
    assert max(prompt + max(responses) for prompt, *responses in groups) <= 300
    assert groups == lengths.groups(100, longest=300) != lengths.groups(100, longest=300, seed=1)


def test_result_limit_is_held_or_missed():
    assert Result(2.0, "s", 1.0, "it", at_least=1.8).limit == "≥ 1.8: held"
    assert Result(1.7, "s", 1.0, "it", at_least=1.8).limit == "≥ 1.8: MISSED"
    assert Result(1.5, "s", 1.0, "it", at_most=1.6).limit == "≤ 1.6: held"
    assert Result(1.7, "s", 1.0, "it", at_most=1.6).limit == "≤ 1.6: MISSED"


def test_interleaved_variants_run_alternately():
    order: list[str] = []
    spent = interleaved({"a": lambda: order.append("a"), "b": lambda: time.sleep(0.02)}, rounds=3)
    assert order == ["a"] * 4
    assert spent["b"].seconds >= 0.02 > spent["b"].cpu_seconds
    both: list[str] = []
    interleaved({"a": lambda: both.append("a"), "b": lambda: both.append("b")}, rounds=2)
    assert both == ["a", "b"] * 3
