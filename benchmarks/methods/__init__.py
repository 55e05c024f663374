"""Compare all methods on the quickstart's task, from one SFT policy, reward model, prompts and rankings.

Methods that sample (PPO, RLOO, GRPO and the others of `fairlead quickstart --method`), DPO and KTO on the
rankings that the reward model was trained on, and best of 16 followed by SFT. Gold, KL and score are those of
answers to held-out prompts. Every finished run is a file in benchmarks/out/methods, so the same command
continues an interrupted benchmark.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import quickstart
from benchmarks.methods import report
from benchmarks.methods.outcome import Outcome, Seeds
from benchmarks.methods.recipes import Inputs, Recipe, recipes
from benchmarks.parcel_task import store
from benchmarks.parcel_task.evaluation import Evaluated, Evaluation
from benchmarks.parcel_task.store import Store, measure_all
from benchmarks.parcel_task.tables import show
from benchmarks.parcel_task.task import Task, model_digest, task_of, without_places
from benchmarks.result import OUT, Result, Settings
from examples.parcel_help import measures
from fairlead.errors import ProcessFailed
from fairlead.rounds.files import read_rows, write_rows

SEEDS = 3
SAMPLES = 64
MINUTES = 120.0
FOLDER = OUT / "methods"
_QUICK: dict[str, object] = {
    "ppo.updates": 2,
    "ppo.batch_size": 16,
    "ppo.mini_batch_size": 8,
    "preference.epochs": 1,
    "sft.epochs": 1,
}


class Run:
    """A method with one seed."""

    def __init__(self, inputs: Inputs, recipe: Recipe, seed: int) -> None:
        self.recipe, self.seed = recipe, seed
        self._inputs = inputs

    def __str__(self) -> str:
        return f"{self.recipe.title}, seed {self.seed}"

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.recipe.name}-seed{self.seed}"

    @property
    def kind(self) -> str:
        """What fails for every seed if it fails for one."""
        return self.recipe.name

    def key(self) -> str:
        """Return the digest of all settings that its figures depend on, but not of our code."""
        task = self._inputs.task
        return store.key(
            {
                "run": without_places(self.recipe.settings(self._inputs, self.seed)),
                "models": [model_digest(folder) for folder in (task.policy, task.reward_model)],
                "prompts": task.prompts_digest,
                "evaluation": [task.heldout, task.samples],
            }
        )

    def measure(self, evaluation: Evaluation, start: Evaluated, *, deadline: float) -> Outcome:
        """Run it and evaluate its policy.

        Args:
            evaluation: of all methods.
            start: the policy that all start from.
            deadline: Unix time at which it is killed.

        Raises:
            OutOfTime: if it was.
            ProcessFailed: if it fails.
        """
        with tempfile.TemporaryDirectory() as name:
            made = self.recipe.make(self._inputs, self.seed, Path(name), deadline=deadline)
            found = outcome(evaluation.evaluated(made.policy), start, self._inputs.task)
        return dataclasses.replace(
            found,
            episodes=made.episodes,
            whole_cpu_seconds=made.whole_cpu_seconds,
            training_cpu_seconds=made.training_cpu_seconds,
            seconds=made.seconds,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What all runs gave."""

    seeds: Sequence[Seeds]
    """Methods of which a seed has finished; at least one."""
    start: Outcome
    """The policy that all start from."""
    out: Path
    """Folder for tables and pictures."""


def run(settings: Settings) -> dict[str, Result]:
    """Measure all methods, seed by seed, until the time is up; what has not finished is listed.

    Raises:
        ProcessFailed: if no method has finished.
    """
    source = quickstart.ensure(settings.source)
    with measured(recipes(), settings, source, FOLDER) as found:
        show(f"{report.table(found.seeds, found.start)}\n\n{_reward_model(source)}", found.out / "methods.md")
        for suffix in ("png", "svg"):
            report.draw(found.seeds, found.start, found.out / f"methods.{suffix}")
    return report.results(found.seeds, found.start)


@contextmanager
def measured(
    known: Sequence[Recipe], settings: Settings, source: Path, folder: Path, *, minutes: float = MINUTES
) -> Iterator[Found]:
    """Measure recipes with several seeds, and yield what has finished in time.

    Args:
        known: what is compared.
        settings: those of the benchmark.
        source: folder of a quickstart.
        folder: finished runs, tables and pictures; with `--quick` a temporary one takes its place.
        minutes: time limit, unless the settings have one.

    Raises:
        ProcessFailed: if nothing has finished.
    """
    deadline = time.time() + 60 * (settings.minutes or minutes)
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        extra = _QUICK if settings.quick else {}
        inputs = inputs_of(source, temporary, extra=extra, samples=2 if settings.quick else SAMPLES)
        out = temporary if settings.quick else folder
        runs = [Run(inputs, recipe, seed) for seed in range(settings.rounds(SEEDS)) for recipe in known]
        evaluation = _evaluation(inputs.task)
        start = evaluation.evaluated(None)
        finished = measure_all(
            runs,
            Store(out / "runs", Outcome.of),
            lambda run: run.measure(evaluation, start, deadline=deadline),
            deadline=deadline,
        )
        found = by_method(known, finished)
        if not found:
            raise ProcessFailed("nothing has finished; see above")
        yield Found(found, outcome(start, start, inputs.task), out)


def inputs_of(source: Path, folder: Path, *, extra: Mapping[str, object], samples: int) -> Inputs:
    """Return what a quickstart gives all methods; prompts and rankings without held-out ones are written."""
    task = task_of(source, folder, extra=extra, samples=samples)
    rankings = folder / "rankings.jsonl"
    rows = read_rows(source / "data" / "round-0" / "rankings.jsonl")
    write_rows(rankings, (row for row in rows if row["prompt"] not in task.heldout))
    return Inputs(task, rankings)


def outcome(found: Evaluated, start: Evaluated, task: Task) -> Outcome:
    """Return the figures of a policy, without its cost.

    Args:
        found: the policy.
        start: the policy that all start from.
        task: what both answered.
    """
    before, after = (dict(zip(task.heldout, each.golds, strict=True)) for each in (start, found))
    return Outcome(found.gold, found.kl, measures.win_rate(before, after), found.score, found.words)


def by_method(known: Sequence[Recipe], finished: Mapping[Run, Outcome]) -> list[Seeds]:
    """Return the methods of which a seed has finished."""
    outcomes = {recipe: [it for run, it in finished.items() if run.recipe is recipe] for recipe in known}
    return [Seeds(recipe.name, recipe.title, found) for recipe, found in outcomes.items() if found]


def _evaluation(task: Task) -> Evaluation:
    config = quickstart.config(task.overrides({}, 0, Path("runs")))
    return Evaluation(config, task.heldout, samples=task.samples, reward_model=task.reward_model)


def _reward_model(source: Path) -> str:
    """Return what the reward model cost, which the CPU time of no method contains."""
    file = source / "stages.json"
    try:
        cpu_seconds = json.loads(file.read_text(encoding="utf-8"))["cpu_seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        cpu_seconds = {}
    spent = cpu_seconds.get("reward_model-0", cpu_seconds.get("reward_model"))
    cost = "an unknown number of" if spent is None else f"{spent:.0f}"
    return f"The reward model, which DPO and KTO do not need, took {cost} CPU seconds."
