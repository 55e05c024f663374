"""Does exactly-once matter? The same run with some of its tasks lost or doubled on purpose.

RLOO on parcel help in one process; the faults are between queue and learner, where the trainer's ledger would
have prevented them. Every finished run is a file in benchmarks/out/lab, so the same command continues an
interrupted benchmark.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks import seed_points
from benchmarks.overoptimization import learning_runs, proxies
from benchmarks.overoptimization.proxies import GridRun
from benchmarks.parcel_task import learning, store
from benchmarks.parcel_task.lab import POLICY, Lab, opened
from benchmarks.parcel_task.learning import Curve
from benchmarks.parcel_task.over_seeds import shown
from benchmarks.parcel_task.store import Store, measure_all
from benchmarks.parcel_task.tables import show, table
from benchmarks.result import Result, Settings
from benchmarks.seed_points import Series
from fairlead.errors import ProcessFailed
from fairlead.types import Outcome

SEEDS = 5
MINUTES = 60.0
TASKS = 400
"""Labelled tasks of the reward model, which is the same in all runs."""
UPDATES = 24
SETTINGS: Mapping[str, object] = {"ppo.updates": UPDATES, "ppo.kl_coefficient": 0.1}

How = Literal["lost", "lost, the longest", "doubled", "doubled one update later"]


@dataclass(frozen=True, slots=True)
class Arm:
    """What happens to a share of the tasks."""

    how: How
    """What; of the tasks of an update, drawn at random unless they are the longest."""
    share: float
    """Which share; 0 for none."""

    def __str__(self) -> str:
        return f"{self.share:.0%} {self.how}" if self.share else "none"

    @property
    def name(self) -> str:
        """In names of files."""
        words = "-".join(self.how.replace(",", "").split())
        return f"{words}-{1000 * self.share:.0f}" if self.share else "none"


ARMS = (
    Arm("lost", 0.0),
    *(Arm(how, share) for how in ("lost", "doubled") for share in (0.01, 0.05, 0.2)),
    Arm("lost, the longest", 0.2),
    Arm("doubled one update later", 0.2),
)
NONE = ARMS[0]


class Faults:
    """Loses or doubles tasks: exactly the given share of those of a run, to a whole task."""

    def __init__(self, arm: Arm, seed: int) -> None:
        self._arm = arm
        self._rng = random.Random(f"{seed} faults")
        self._owed = 0.0
        self._late: list[Outcome] = []
        self.affected = 0
        """Tasks lost or doubled so far."""

    def __call__(self, outcomes: list[Outcome], update: int) -> Sequence[Outcome]:
        """Return what the learner gets of the outcomes of an update."""
        arm = self._arm
        self._owed += arm.share * len(outcomes)
        count = int(self._owed + 1e-9)
        self._owed -= count
        self.affected += count
        if arm.how == "lost, the longest":
            places = sorted(range(len(outcomes)), key=lambda place: _tokens(outcomes[place]))
            chosen = set(places[len(places) - count :])
        else:
            chosen = set(self._rng.sample(range(len(outcomes)), k=count))
        again = [outcomes[place] for place in sorted(chosen)]
        if arm.how.startswith("lost"):
            return [outcome for place, outcome in enumerate(outcomes) if place not in chosen]
        if arm.how == "doubled":
            return [*outcomes, *again]
        before, self._late = self._late, again
        return [*outcomes, *before]


@dataclass(frozen=True)
class FaultRun:
    """A run with an arm and a seed."""

    lab: Lab
    arm: Arm
    seed: int

    def __str__(self) -> str:
        return f"faults: {self.arm}, seed {self.seed}"

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"faults-{self.arm.name}-seed{self.seed}"

    @property
    def kind(self) -> Arm:
        """What fails for every seed if it fails for one."""
        return self.arm

    def key(self) -> str:
        """Return the digest of what its figures depend on, but not of our code."""
        return store.key({"run": self.name, "tasks": TASKS, "quick": self.lab.quick, **SETTINGS})

    def measure(self) -> Curve:
        """Run."""
        lab = self.lab
        model = proxies.labelled(lab, GridRun(lab, POLICY, 50 if lab.quick else TASKS, seed=0))
        with learning_runs.configured(lab, model, self.seed, SETTINGS) as config:
            return learning.learn(config, change=Faults(self.arm, self.seed))


def run(settings: Settings) -> dict[str, Result]:
    """Measure all arms, seed by seed, until the time is up; what has not finished is listed.

    Raises:
        ProcessFailed: if nothing has finished.
    """
    deadline = time.time() + 60 * (settings.minutes or MINUTES)
    with opened(quick=settings.quick) as lab:
        runs = [FaultRun(lab, arm, seed) for seed in range(settings.rounds(SEEDS)) for arm in ARMS]
        kept = Store(lab.folder / "lost_tasks", Curve.of)
        finished = measure_all(runs, kept, FaultRun.measure, deadline=deadline)
        found = by_arm({(run.arm, run.seed): curve for run, curve in finished.items()})
        if NONE not in found:
            raise ProcessFailed("no run without faults has finished; see above")
        show(report(found), lab.folder / "lost_tasks.md")
        for suffix in ("png", "svg"):
            draw(found, lab.folder / f"lost_tasks.{suffix}")
    gold = statistics.fmean(curve.last("gold") for curve in found[NONE].values())
    return {
        f"lost_tasks_{arm.name}_gold": Result(
            statistics.fmean(curve.last("gold") for curve in seeds.values()), "gold", gold, "no fault"
        )
        for arm, seeds in found.items()
    }


Found = Mapping[Arm, Mapping[int, Curve]]
"""Curves by arm and seed."""


def by_arm(finished: Mapping[tuple[Arm, int], Curve]) -> Found:
    """Return the arms of which a seed has finished, in their order."""
    found = {arm: {seed: curve for (known, seed), curve in finished.items() if known == arm} for arm in ARMS}
    return {arm: seeds for arm, seeds in found.items() if seeds}


def report(found: Found) -> str:
    """Return the table: means of the last four updates over seeds, and differences by seed."""
    base = found[NONE]
    rows = []
    for arm, seeds in found.items():
        both = [seed for seed in seeds if seed in base]
        gaps = [seeds[seed].last("gold") - base[seed].last("gold") for seed in both]
        golds = [curve.last("gold") for curve in seeds.values()]
        rows.append(
            (
                *(str(arm), str(len(seeds))),
                f"{statistics.fmean(sum(p.learned for p in curve.points) for curve in seeds.values()):,.0f}",
                shown(golds),
                f"{statistics.stdev(golds):.2f}" if len(golds) > 1 else "",
                "" if arm == NONE or not gaps else shown(gaps),
                shown([curve.last("proxy") for curve in seeds.values()]),
                shown([curve.last("kl") for curve in seeds.values()]),
                f"{statistics.fmean(curve.last('words') for curve in seeds.values()):.1f}",
            )
        )
    header = (
        *("tasks", "seeds", "answers trained on", "gold", "s.d. of seeds", "gold − none, by seed"),
        *("score", "KL, nats", "words"),
    )
    return table(header, rows)


def draw(found: Found, out: Path) -> None:
    """Draw gold against √KL, a dot for each seed."""
    points = {
        arm: [(max(0.0, curve.last("kl")) ** 0.5, curve.last("gold")) for curve in seeds.values()]
        for arm, seeds in found.items()
    }
    first = [curve.points[0] for curve in found[NONE].values()]
    start = statistics.fmean(point.gold for point in first)
    seed_points.draw(
        [Series(str(arm), own) for arm, own in points.items()],
        Series("SFT", [(0.0, start)]),
        out,
        x_label="√KL to SFT, √nats per answer",
        y_label="gold of the last four updates",
    )


def _tokens(outcome: Outcome) -> int:
    return sum(len(rollout.completion.token_ids) for rollout in outcome.rollouts)
