"""Measure the cost of `deterministic = true`: wall time per update, against the same run without it.

Complete runs through the real services take turns, with random weights and answers of fixed length. The time
of an update is the median over a run, from one line of metrics to the next.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks import tiny_models
from benchmarks.result import Result, Settings

_WARM_UPDATES = 2
"""Excluded from the median: the first updates wait for processes to become ready."""


def run(settings: Settings) -> dict[str, Result]:
    """Run with and without determinism, twice each, in turns."""
    rounds = settings.rounds(2)
    width, layers, updates, batch, tokens = (32, 2, 4, 8, 4) if settings.quick else (256, 4, 10, 64, 32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = tiny_models.config(width=width, layers=layers, vocabulary=512, positions=128)
        tiny_models.save(folder / "policy", shape, reward=False)
        tiny_models.save(folder / "reward", shape, reward=True)
        prompts = [{"prompt": " ".join(f"w{n * k % 500 + 3}" for k in range(1, 17))} for n in range(256)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts))
        shared = {
            "ppo.updates": updates,
            "ppo.batch_size": batch,
            "ppo.mini_batch_size": batch,
            "sampling.max_new_tokens": tokens,
        }
        found: dict[bool, list[float]] = {False: [], True: []}
        for turn, deterministic in itertools.product(range(rounds), (False, True)):
            seconds = _train(folder, f"{deterministic}-{turn}".lower(), shared, deterministic=deterministic)
            found[deterministic].append(seconds)
    plain, separate = (statistics.median(found[which]) for which in (False, True))
    return {"determinism/update": Result(separate, "s", plain, "the same run without determinism")}


def _train(folder: Path, name: str, shared: Mapping[str, object], *, deterministic: bool) -> float:
    """Return the median seconds per update."""
    values = {
        "name": name,
        "runs": folder / "runs",
        "base": folder,
        "data.prompts": "prompts.jsonl",
        "policy.path": folder / "policy",
        "reference.path": folder / "policy",
        "reward.path": folder / "reward",
        "observe.tensorboard": "false",
        **shared,
        **({"deterministic": "true"} if deterministic else {}),
    }
    (folder / "run.toml").write_text("")
    command = [sys.executable, "-m", "fairlead.cli", "ppo", str(folder / "run.toml")]
    command += itertools.chain.from_iterable(("--set", f"{key}={value}") for key, value in values.items())
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = (folder / "runs" / name / "metrics_ppo.jsonl").read_text().splitlines()
    times: list[float] = [json.loads(line)["time"] for line in lines]
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times[_WARM_UPDATES:]))
