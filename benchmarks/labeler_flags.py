"""Measure which labelers `fairlead.judgments.leave_one_out` flags: bad ones, and honest ones by mistake.

Decides the limit of 0.60 over 30 shared tasks. In each project of twenty labelers one ranks at random and one
backwards; the others agree on 72.6% of pairs, as InstructGPT's.
"""

from __future__ import annotations

import random

from benchmarks.result import Result, Settings
from examples.parcel_help.habits import HabitualLabeler, noise_for, overlapping
from fairlead.judgments import leave_one_out

LABELERS, PROJECTS, AGREEMENT = 20, 200, 0.726
CELLS = ((4, 3, 10), (4, 3, 30), (4, 2, 30), (2, 3, 30), (2, 3, 120), (2, 2, 120))
"""Answers to a task, labelers of a task, shared tasks of each labeler."""


def run(settings: Settings) -> dict[str, Result]:
    """Return shares of random and backwards labelers that are flagged, beside honest ones that are not."""
    results: dict[str, Result] = {}
    for answers, overlap, shared in CELLS[1:2] if settings.quick else CELLS:
        counts = {"random": 0, "backwards": 0, "honest": 0}
        projects = 2 if settings.quick else PROJECTS
        for seed in range(projects):
            for name in _flagged(answers, overlap, shared, seed=seed):
                counts[name] += 1
        honest = 100 - 100 * counts["honest"] / (projects * (LABELERS - 2))
        for habit in ("random", "backwards"):
            name = f"{habit}_{answers}_answers_{overlap}_labelers_{shared}_tasks"
            flagged = 100 * counts[habit] / projects
            results[name] = Result(flagged, "% flagged", honest, "% of honest labelers not flagged")
    return results


def _flagged(answers: int, overlap: int, shared: int, *, seed: int) -> list[str]:
    """Return the habits of the labelers that are flagged in one project."""
    rng = random.Random(seed)
    worths = [[rng.gauss(0, 1) for _ in range(answers)] for _ in range(LABELERS * shared // overlap)]
    noise = noise_for(AGREEMENT, worths[:100])
    habits = ("random", "backwards", *["honest"] * (LABELERS - 2))
    known = [
        HabitualLabeler(f"{habit} {number}", seed, habit, noise, worth=_number)  # type: ignore[arg-type]
        for number, habit in enumerate(habits)
    ]
    tasks = [(str(number), [*map(str, own)]) for number, own in enumerate(worths)]
    judgments = overlapping(known, tasks, overlap=overlap, seed=seed)
    figures = leave_one_out(judgments, last=shared, after=shared)
    return [one.labeler.split()[0] for one in figures if one.flagged]


def _number(prompt: str, text: str) -> float:
    return float(text)
