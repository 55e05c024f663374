"""A judge's labels against people's: mixtures at one number of labels, with random labels as a control.

Labels compare two answers. Simulated people are those of the quickstart; a judge orders a pair as gold does
and is wrong with a known probability, or prefers the longer answer as often. A reward model of each mixture
chooses the best of n answers, and some also guide RLOO. Every finished run is a file in benchmarks/out/lab.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.overoptimization import learning_runs, proxies
from benchmarks.overoptimization.proxies import SINGLE, Curves
from benchmarks.parcel_task import learning, reward_models, store
from benchmarks.parcel_task.answers import Answer
from benchmarks.parcel_task.lab import Lab, opened
from benchmarks.parcel_task.learning import Curve
from benchmarks.parcel_task.over_seeds import interval, shown
from benchmarks.parcel_task.store import Store, measure_all
from benchmarks.parcel_task.tables import show, table
from benchmarks.result import Result, Settings
from examples import plots
from examples.parcel_help import gold
from examples.plots import COLORS, INK, MUTED
from fairlead.errors import ProcessFailed

SEEDS = 3
MINUTES = 60.0
LABELS = 800
"""Labelled pairs of a mixture."""
UPDATES = 24
SETTINGS: Mapping[str, object] = {"ppo.updates": UPDATES, "ppo.kl_coefficient": 0.1}


@dataclass(frozen=True, slots=True)
class Judge:
    """Who labels besides people."""

    accuracy: float
    """Probability that it orders a pair as gold does, where it does not prefer the longer answer; 0.5 is at
    random."""
    longer: float = 0.0
    """Probability that it prefers the longer answer, without regard to gold."""

    def __str__(self) -> str:
        if self.longer:
            return f"judge that prefers the longer in {self.longer:.0%}"
        return "random labels" if self.accuracy == 0.5 else f"judge right in {self.accuracy:.0%}"

    @property
    def name(self) -> str:
        """In names of files."""
        return f"judge{100 * self.accuracy:.0f}" + (f"-longer{100 * self.longer:.0f}" if self.longer else "")

    def prefers_first(self, first: Answer, second: Answer, *, better: bool, rng: random.Random) -> bool:
        """Return its label; `better` says whether the first one is, by gold."""
        lengths = [len(answer.text.split()) for answer in (first, second)]
        if rng.random() < self.longer and lengths[0] != lengths[1]:
            return lengths[0] > lengths[1]
        return better == (rng.random() < self.accuracy)


RANDOM = Judge(0.5)
JUDGES = (Judge(0.9), Judge(0.75), Judge(0.6), RANDOM, Judge(1.0, longer=0.5))


@dataclass(frozen=True, slots=True)
class Mixture:
    """How many labels are whose."""

    people: int
    """Labels by people."""
    judged: int = 0
    """Labels by the judge."""
    judge: Judge | None = None
    """The judge, if there is one."""

    @property
    def name(self) -> str:
        """In names of files."""
        return f"{self.people}-people" + (f"-{self.judged}-{self.judge.name}" if self.judge else "")

    @property
    def title(self) -> tuple[str, str]:
        """What people and the judge label, as cells of a table."""
        if self.judge is None:
            return str(self.people or "none"), "none"
        by = "at random" if self.judge == RANDOM else f"by a {self.judge}"
        return str(self.people or "none"), f"{self.judged} {by}"


ONLY_PEOPLE = tuple(Mixture(people) for people in (LABELS, LABELS // 2, LABELS // 4))
MIXTURES = (
    *ONLY_PEOPLE,
    *(
        Mixture(people, LABELS - people, judge)
        for people in (LABELS // 2, LABELS // 4, 0)
        for judge in JUDGES
        if people != LABELS // 4 or judge in (Judge(0.75), RANDOM)
    ),
)
TUNED = (
    ONLY_PEOPLE[0],
    ONLY_PEOPLE[1],
    Mixture(LABELS // 2, LABELS // 2, Judge(0.75)),
    Mixture(LABELS // 2, LABELS // 2, RANDOM),
    Mixture(0, LABELS, Judge(0.75)),
)
"""Mixtures whose reward models also guide RLOO."""


@dataclass(frozen=True)
class _OfMixture:
    """What depends on a mixture and a seed."""

    lab: Lab
    mixture: Mixture
    seed: int

    def __str__(self) -> str:
        return f"labels: {' and '.join(self.mixture.title)}, seed {self.seed}"

    @property
    def kind(self) -> Mixture:
        """What fails for every seed if it fails for one."""
        return self.mixture


class MixtureRun(_OfMixture):
    """A reward model of a mixture."""

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"mixed-{self.mixture.name}-seed{self.seed}"

    def key(self) -> str:
        """Return the digest of what its figures depend on, but not of our code."""
        return store.key({"run": self.name, "samples": proxies.samples(self.lab)})

    def reward_model(self) -> Path:
        """Return the folder of the reward model."""
        return reward_models.trained(
            labels(self.lab, self.mixture, self.seed),
            self.lab.policy(),
            self.lab.folder / "models" / self.name,
            seed=self.seed,
        )

    def measure(self) -> Curves:
        """Train and score."""
        return proxies.compared(self.lab, {SINGLE: proxies.scores(self.lab, self.reward_model())})


class TunedRun(_OfMixture):
    """RLOO against the reward model of a mixture."""

    def __str__(self) -> str:
        return f"RLOO, {super().__str__()}"

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"tuned-{self.mixture.name}-seed{self.seed}"

    def key(self) -> str:
        """Return the digest of what its figures depend on, but not of our code."""
        return store.key({"run": self.name, "quick": self.lab.quick, **SETTINGS})

    def measure(self) -> Curve:
        """Train the reward model and run."""
        model = MixtureRun(self.lab, self.mixture, self.seed).reward_model()
        with learning_runs.configured(self.lab, model, self.seed, SETTINGS) as config:
            return learning.learn(config)


def labels(lab: Lab, mixture: Mixture, seed: int) -> list[dict[str, Any]]:
    """Return the labelled pairs of a mixture; the pairs of a seed are the same in all, and people come first.

    Pairs of equal gold are left out: no judge can be right about them.
    """
    rng = random.Random(f"{seed} pairs")
    judging = random.Random(f"{seed} judge")
    people = random.Random(f"{seed} people of pairs")
    rows: list[dict[str, Any]] = []
    while len(rows) < mixture.people + mixture.judged:
        [(prompt, (first, second))] = reward_models.tasks(proxies.known(lab), 1, size=2, rng=rng)
        worths = [gold.reward(prompt, answer.text, ended=answer.ended) for answer in (first, second)]
        if worths[0] == worths[1]:
            continue
        if len(rows) < mixture.people:
            rows.append(reward_models.ranking(prompt, (first, second), rng=people))
            continue
        assert mixture.judge is not None
        is_first = mixture.judge.prefers_first(first, second, better=worths[0] > worths[1], rng=judging)
        chosen, rejected = (first, second) if is_first else (second, first)
        responses = [{"text": chosen.text, "rank": 1}, {"text": rejected.text, "rank": 2}]
        rows.append({"prompt": prompt, "responses": responses})
    return rows


def run(settings: Settings) -> dict[str, Result]:
    """Measure all mixtures, seed by seed, until the time is up; what has not finished is listed.

    Raises:
        ProcessFailed: if nothing has finished.
    """
    deadline = time.time() + 60 * (settings.minutes or MINUTES)
    with opened(quick=settings.quick) as lab:
        seeds = range(settings.rounds(SEEDS))
        known = MIXTURES[:4] if settings.quick else MIXTURES
        tuned_mixtures = TUNED[:1] if settings.quick else TUNED
        folder = lab.folder / "mixed_feedback"
        runs = [MixtureRun(lab, mixture, seed) for seed in seeds for mixture in known]
        chosen = measure_all(runs, Store(folder, Curves.of), MixtureRun.measure, deadline=deadline)
        tuned_runs = [TunedRun(lab, mixture, seed) for seed in seeds for mixture in tuned_mixtures]
        tuned = measure_all(tuned_runs, Store(folder, Curve.of), TunedRun.measure, deadline=deadline)
        if not chosen:
            raise ProcessFailed("nothing has finished; see above")
        found = Found(_grouped(chosen), _grouped(tuned))
        show(f"{report(found)}\n\n{report_tuned(found)}".strip(), lab.folder / "mixed_feedback.md")
        for suffix in ("png", "svg"):
            draw(found, lab.folder / f"mixed_feedback.{suffix}")
    people = _mean_gain(found.chosen.get(ONLY_PEOPLE[0], ()))
    return {
        f"mixed_feedback_{mixture.name}_gold": Result(
            _mean_gain(curves), "gold gained", people, "people only"
        )
        for mixture, curves in found.chosen.items()
    }


@dataclass(frozen=True, slots=True)
class Found:
    """What has finished."""

    chosen: Mapping[Mixture, Sequence[Curves]]
    """Best-of-n by mixture."""
    tuned: Mapping[Mixture, Sequence[Curve]]
    """RLOO by mixture."""


def _grouped(finished: Mapping[Any, Any]) -> dict[Mixture, list[Any]]:
    found: dict[Mixture, list[Any]] = {}
    for one, outcome in finished.items():
        found.setdefault(one.mixture, []).append(outcome)
    return found


def _mean_gain(curves: Sequence[Curves], *, place: int = -1) -> float:
    gains = [float(one.curves[SINGLE].gold_gains.mean(axis=0)[place]) for one in curves]
    return statistics.fmean(gains) if gains else float("nan")


def report(found: Found) -> str:
    """Return the table of best-of-n."""
    rows = []
    for mixture, curves in found.chosen.items():
        golds = [one.curves[SINGLE].gold_gains.mean(axis=0) for one in curves]
        middle = curves[0].curves[SINGLE].n.index(16)
        rows.append(
            (
                *mixture.title,
                str(len(curves)),
                shown([one.accuracy[SINGLE] for one in curves], 3),
                shown([float(own[middle]) for own in golds]),
                shown([float(own[-1]) for own in golds]),
            )
        )
    last = next(iter(found.chosen.values()))[0].curves[SINGLE].n[-1]
    header = (
        *("labels by people", "other labels", "seeds", "reward model's accuracy by gold"),
        *("gold gain, best of 16", f"best of {last}"),
    )
    return table(header, rows, texts=2)


def report_tuned(found: Found) -> str:
    """Return the table of tuned policies."""
    rows = [
        (
            *mixture.title,
            str(len(curves)),
            shown([curve.last("gold") for curve in curves]),
            shown([curve.last("proxy") for curve in curves]),
            shown([curve.last("kl") for curve in curves]),
        )
        for mixture, curves in found.tuned.items()
    ]
    header = ("labels by people", "other labels", "seeds", "gold after RLOO", "score", "KL, nats")
    return table(header, rows, texts=2)


def draw(found: Found, out: Path) -> None:
    """Draw the accuracy of the reward model and the gold of best of 16 over the labels by people."""
    with mpl.rc_context({**plots.STYLE, "savefig.facecolor": "white"}):
        figure = Figure(figsize=(9.2, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        _lines(left, found, lambda one: one.accuracy[SINGLE])
        _lines(right, found, _gain_of_sixteen)
        left.set_ylabel("reward model's accuracy by gold")
        right.set_ylabel("gold gain, best of 16")
        for axes in (left, right):
            axes.set_xlabel(f"labels by people; the judge adds the rest of {LABELS}")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=150)


def _gain_of_sixteen(one: Curves) -> float:
    curve = one.curves[SINGLE]
    return float(curve.gold_gains.mean(axis=0)[curve.n.index(16)])


def _lines(axes: Any, found: Found, figure: Any) -> None:  # noqa: ANN401 - matplotlib's own type, a function
    whole = found.chosen.get(ONLY_PEOPLE[0], ())
    for place, judge in enumerate((None, *JUDGES)):
        groups = {
            mixture.people: curves for mixture, curves in found.chosen.items() if mixture.judge == judge
        }
        if not groups:
            continue
        if judge is not None and whole:
            groups[LABELS] = whole
        xs = sorted(groups)
        middle = [interval([figure(one) for one in groups[x]]) for x in xs]
        color = INK if judge is None else MUTED if judge == RANDOM else COLORS[place - 1]
        style: Any = {"linestyle": "--" if judge is None else "-", "marker": "osD^vP"[place]}
        title = "people only, nothing added" if judge is None else str(judge)
        axes.errorbar(
            [x + 6 * (place - 2) for x in xs],
            [mean for mean, _ in middle],
            yerr=[0.0 if half != half else half for _, half in middle],  # noqa: PLR0124 - NaN of one seed
            color=color,
            markersize=4,
            capsize=2,
            elinewidth=0.8,
            label=title,
            **style,
        )
