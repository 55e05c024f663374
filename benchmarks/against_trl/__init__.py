"""Compare our PPO, RLOO and GRPO, through the services, with TRL's, on the quickstart's task.

Both sides use the same SFT policy, reward model, prompts, number of episodes and, where they exist, settings
(tables in docs/benchmarks.md). TRL runs in environments of its own, one for each release, which the first
call creates. Every finished run of a side with a seed is a file in benchmarks/out/trl, so the same command
continues an interrupted benchmark; other settings are measured again. Gold and KL are measured on prompts
that were held out from all training, in the same way for both, at points along the runs.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import quickstart
from benchmarks.against_trl import picture, report
from benchmarks.against_trl.methods import METHODS
from benchmarks.against_trl.outcome import Outcome
from benchmarks.against_trl.sides import SIDES, Run
from benchmarks.parcel_task.evaluation import Evaluation
from benchmarks.parcel_task.store import Store, measure_all
from benchmarks.parcel_task.task import Task, task_of
from benchmarks.result import OUT, Result, Settings
from fairlead.errors import ProcessFailed

SEEDS = 5
SAMPLES = 64
MINUTES = 180.0
FOLDER = OUT / "trl"


def run(settings: Settings) -> dict[str, Result]:
    """Measure all methods, seed by seed, until the time is up; what has not finished is listed.

    Raises:
        ProcessFailed: if no method has a run of both sides.
    """
    source = quickstart.ensure(settings.source)
    deadline = time.time() + 60 * (settings.minutes or MINUTES)
    extra: dict[str, object] = {}
    if settings.quick:
        extra = {"ppo.updates": 3, "ppo.batch_size": 16, "ppo.mini_batch_size": 8}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = task_of(source, folder, extra=extra, samples=2 if settings.quick else SAMPLES)
        out = folder if settings.quick else FOLDER
        runs = list(ordered(task, settings.rounds(SEEDS)))
        evaluation = functools.cache(lambda: _evaluation(task))
        finished = measure_all(
            runs,
            Store(out / "runs", Outcome.of),
            lambda run: run.measure(evaluation(), deadline=deadline),
            deadline=deadline,
        )
        found = report.Comparison.of(METHODS, finished)
        if not found:
            raise ProcessFailed("no method has a run of both sides; see above")
        text = report.table(found)
        print(text)
        (out / "runs.md").write_text(text + "\n")
        picture.draw(found, out / "gold.png")
        if not settings.quick:
            print(f"drawn in {out / 'gold.png'}", file=sys.stderr)
    return report.results(found)


def ordered(task: Task, seeds: int) -> Iterator[Run]:
    """Yield all runs; the sides take turns, and a seed of every method comes before the next seed."""
    for seed in range(seeds):
        for method in METHODS:
            # Which side is first alternates, so that a slow change of the machine affects both.
            for side in SIDES if seed % 2 == 0 else SIDES[::-1]:
                yield Run(task, method, side, seed)


def _evaluation(task: Task) -> Evaluation:
    """Return what evaluates the policies of all runs, which have the same start and the same sampling."""
    config = quickstart.config(task.overrides(METHODS[0].settings, 0, Path("runs")))
    return Evaluation(config, task.heldout, samples=task.samples)
