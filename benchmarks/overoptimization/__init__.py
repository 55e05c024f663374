"""Reward hacking, measured: gold against proxy over √KL, by size and labels of the reward model, and guards.

Gao, Schulman and Hilton (2022) with the exact gold reward of parcel help. Three parts, `proxies` (best-of-n),
`guards` (best-of-n) and `learning` (RLOO); every finished run is a file in benchmarks/out/lab, so the same
command continues an interrupted benchmark.
"""

from __future__ import annotations

import itertools
import statistics
import time

from benchmarks.overoptimization import learning_runs, picture, report
from benchmarks.overoptimization.learning_runs import LearningRun
from benchmarks.overoptimization.proxies import Curves, GridRun, GuardRun, known
from benchmarks.parcel_task.answers import golds
from benchmarks.parcel_task.lab import POLICY, Size, opened
from benchmarks.parcel_task.learning import Curve
from benchmarks.parcel_task.store import Store, measure_all
from benchmarks.parcel_task.tables import show
from benchmarks.result import Result, Settings
from fairlead.errors import ProcessFailed

SIZES = (Size(16, 1), POLICY, Size(128, 2))
"""Of reward models, the smallest first."""
TASKS = (50, 100, 200, 400)
"""Labelled tasks of a reward model, four answers each."""
LEARNING_TASKS = (100, 400)
"""Those of runs of reinforcement learning."""
SEEDS = 3
MINUTES = 120.0


def run(settings: Settings) -> dict[str, Result]:
    """Measure all parts, seed by seed, until the time is up; what has not finished is listed.

    Raises:
        ProcessFailed: if nothing has finished.
    """
    deadline = time.time() + 60 * (settings.minutes or MINUTES)
    with opened(quick=settings.quick) as lab:
        sizes, tasks = (SIZES[:1], TASKS[:1]) if settings.quick else (SIZES, TASKS)
        seeds = range(settings.rounds(SEEDS))
        kept = lab.folder / "overoptimization"
        grid = [GridRun(lab, size, count, seed) for seed in seeds for size in sizes for count in tasks]
        guards = [GuardRun(lab, seed) for seed in seeds]
        counts = tasks if settings.quick else LEARNING_TASKS
        learning = [one for seed in seeds for one in learning_runs.runs(lab, sizes, counts, seed)]
        proxies = Store(kept, Curves.of)
        found = report.Found(
            measure_all(grid, proxies, GridRun.measure, deadline=deadline),
            measure_all(guards, proxies, GuardRun.measure, deadline=deadline),
            measure_all(learning, Store(kept, Curve.of), LearningRun.measure, deadline=deadline),
            statistics.fmean(itertools.chain.from_iterable(golds(known(lab)).values())),
        )
        if not found.grid:
            raise ProcessFailed("nothing has finished; see above")
        show(report.tables(found), lab.folder / "overoptimization.md")
        for suffix in ("png", "svg"):
            picture.draw_all(found, lab.folder, suffix)
        return report.results(found)
