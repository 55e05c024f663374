"""Tables and results of finished runs: fitted laws, what gold confirms of the proxy, what guards save."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.overoptimization import fits
from benchmarks.overoptimization.fits import Fit
from benchmarks.overoptimization.learning_runs import PLAIN, LearningRun
from benchmarks.overoptimization.proxies import GUARDED_TASKS, SINGLE, Curves, GridRun, GuardRun
from benchmarks.parcel_task.best_of import BestOf
from benchmarks.parcel_task.lab import POLICY, Size
from benchmarks.parcel_task.learning import Curve
from benchmarks.parcel_task.over_seeds import shown
from benchmarks.parcel_task.reward_models import PEOPLE_UNIT
from benchmarks.parcel_task.tables import table
from benchmarks.result import Result
from examples.parcel_help.break_it import smooth


@dataclass(frozen=True, slots=True)
class Found:
    """What has finished."""

    grid: Mapping[GridRun, Curves]
    """Best-of-n by size and labels."""
    guards: Mapping[GuardRun, Curves]
    """Best-of-n by guarded proxies."""
    learning: Mapping[LearningRun, Curve]
    """Reinforcement learning."""
    start: float
    """Mean gold of the policy at the start on the prompts of reinforcement learning."""

    def best_of(self) -> dict[tuple[Size, int], list[tuple[Curves, BestOf]]]:
        """Return the seeds of each size and label count."""
        groups: dict[tuple[Size, int], list[tuple[Curves, BestOf]]] = {}
        for run, one in self.grid.items():
            groups.setdefault((run.size, run.tasks), []).append((one, one.curves[SINGLE]))
        return groups

    def runs(self, *, guarded: bool) -> dict[tuple[Size, int, str], dict[int, Curve]]:
        """Return the seeds of each setting of reinforcement learning, with guards or without."""
        groups: dict[tuple[Size, int, str], dict[int, Curve]] = {}
        for run, one in self.learning.items():
            if (run.guard != PLAIN) is guarded:
                groups.setdefault((run.size, run.tasks, run.guard), {})[run.seed] = one
        return groups

    def unguarded(self) -> dict[int, Curve]:
        """Return the runs without a guard that those with one are compared with, by seed."""
        return self.runs(guarded=False).get((POLICY, GUARDED_TASKS, PLAIN), {})


def fits_of_best_of(seeds: Sequence[BestOf]) -> list[Fit]:
    """Return the law of best-of-n for each seed, fitted to the means over prompts."""
    return [fits.fit("best of n", one.distances, one.gold_gains.mean(axis=0).tolist()) for one in seeds]


def fits_of_learning(seeds: Sequence[Curve], start: float) -> list[Fit]:
    """Return the law of reinforcement learning for each seed, fitted to its updates."""
    return [fits.fit("reinforcement learning", *gains(one, start)) for one in seeds]


def gains(curve: Curve, start: float) -> tuple[list[float], list[float]]:
    """Return √KL and the gain in gold of every update."""
    return (
        [math.sqrt(max(0.0, point.kl)) for point in curve.points],
        [point.gold - start for point in curve.points],
    )


def proxy_gain(curve: Curve) -> float:
    """Return by how much the score rose, in units of gold as the model claims."""
    return PEOPLE_UNIT * (curve.last("proxy") - curve.points[0].proxy)


def tables(found: Found) -> str:
    """Return all tables in Markdown."""
    parts = [
        ("Best-of-n by size and labels", _grid(found)),
        ("Best-of-n by guarded proxies", _guards(found)),
        ("Reinforcement learning by size and labels", _learning(found)),
        ("Reinforcement learning with guards", _guarded(found)),
    ]
    return "\n\n".join(f"{title}\n\n{table}" for title, table in parts if table)


def _grid(found: Found) -> str:
    rows = []
    for (size, tasks), seeds in _sorted(found.best_of()):
        curves = [one for _, one in seeds]
        law = fits_of_best_of(curves)
        proxies = [PEOPLE_UNIT * float(one.proxy_gains.mean(axis=0)[-1]) for one in curves]
        golds = [float(one.gold_gains.mean(axis=0)[-1]) for one in curves]
        rows.append(
            (
                *(str(size), str(tasks), str(len(seeds))),
                shown([one.accuracy[SINGLE] for one, _ in seeds]),
                *_coefficients(law),
                *(shown(proxies), shown(golds), confirmed(proxies, golds)),
            )
        )
    last = _largest_n(found)
    header = (
        *("reward model", "labelled tasks", "seeds", "accuracy", "α", "β", "residual", "√KL of the peak"),
        *(f"proxy gain, n = {last}", f"gold gain, n = {last}", "confirmed"),
    )
    return table(header, rows)


def _guards(found: Found) -> str:
    if not found.guards:
        return ""
    by_seed = list(found.guards.values())
    rows = []
    for name in by_seed[0].curves:
        curves = [one.curves[name] for one in by_seed]
        plain = [one.curves[SINGLE] for one in by_seed]
        means = [one.gold_gains.mean(axis=0) for one in curves]
        proxies = [PEOPLE_UNIT * float(one.proxy_gains.mean(axis=0)[-1]) for one in curves]
        saved = [
            float(mean[-1] - other.gold_gains.mean(axis=0)[-1])
            for mean, other in zip(means, plain, strict=True)
        ]
        middle = curves[0].n.index(16)
        rows.append(
            (
                *(name, shown([one.accuracy[name] for one in by_seed])),
                shown([float(mean[middle]) for mean in means]),
                shown([float(mean[-1]) for mean in means]),
                "" if name == SINGLE else shown(saved),
                *(shown(proxies), confirmed(proxies, [float(mean[-1]) for mean in means])),
                f"{statistics.fmean(one.words[-1] for one in curves):.1f}",
            )
        )
    last = _largest_n(found)
    header = (
        *("proxy", "accuracy", "gold gain, n = 16", f"gold gain, n = {last}", "saved"),
        *("proxy gain", "confirmed", "words"),
    )
    return table(header, rows)


def _learning(found: Found) -> str:
    rows = []
    for (size, tasks, _), seeds in _sorted(found.runs(guarded=False)):
        curves = list(seeds.values())
        rows.append(
            (
                *(str(size), str(tasks), str(len(curves))),
                *_coefficients(fits_of_learning(curves, found.start)),
                *_ends(curves, found.start),
            )
        )
    header = (
        *("reward model", "labelled tasks", "seeds", "α", "β", "residual", "√KL of the peak"),
        *("KL at the end", "highest gold gain", "gold gain at the end", "proxy gain", "confirmed"),
    )
    return table(header, rows)


def _ends(curves: Sequence[Curve], start: float) -> tuple[str, ...]:
    proxies = [proxy_gain(one) for one in curves]
    golds = [one.last("gold") - start for one in curves]
    highest = [max(smooth([point.gold - start for point in one.points])) for one in curves]
    kls = [one.last("kl") for one in curves]
    return shown(kls, 1), shown(highest), shown(golds), shown(proxies), confirmed(proxies, golds)


def _guarded(found: Found) -> str:
    plain = found.unguarded()
    if not plain:
        return ""
    rows = [(PLAIN, str(len(plain)), "", *_ends(list(plain.values()), found.start))]
    for (_, _, guard), seeds in found.runs(guarded=True).items():
        both = [seed for seed in seeds if seed in plain]
        saved = [seeds[seed].last("gold") - plain[seed].last("gold") for seed in both]
        rows.append(
            (guard, str(len(seeds)), shown(saved) if saved else "", *_ends(list(seeds.values()), found.start))
        )
    rows += list(_stops(plain, found.start))
    header = (
        *("guard", "seeds", "saved", "KL at the end", "highest gold gain", "gold gain at the end"),
        *("proxy gain", "confirmed"),
    )
    return table(header, rows)


def _stops(plain: Mapping[int, Curve], start: float) -> Iterator[tuple[str, ...]]:
    """Yield what stopping at the first stop of each signal would have given."""
    signals = dict.fromkeys(
        str(alert["signal"]) for one in plain.values() for alert in one.alerts if alert["level"] == "stop"
    )
    for signal in signals:
        stopped = {seed: first_stop(one, signal) for seed, one in plain.items()}
        cut = {
            seed: Curve(plain[seed].points[:update]) for seed, update in stopped.items() if update is not None
        }
        ended = [plain[seed] if seed not in cut else cut[seed] for seed in plain]
        golds = [one.last("gold", updates=3) for one in ended]
        saved = [found - one.last("gold") for found, one in zip(golds, plain.values(), strict=True)]
        where = ", ".join("never" if update is None else str(update) for update in stopped.values())
        yield (
            *(f"stop by `{signal}`, at update {where}", str(len(plain)), shown(saved)),
            *_ends(ended, start),
        )


def first_stop(curve: Curve, signal: str) -> int | None:
    """Return the update at which a signal first crossed its stop limit."""
    found = (
        int(alert["update"])
        for alert in curve.alerts
        if alert["signal"] == signal and alert["level"] == "stop"
    )
    return next(found, None)


def confirmed(proxies: Sequence[float], golds: Sequence[float]) -> str:
    """Return the share of the proxy's gain that gold confirms, from the means over seeds."""
    gain = statistics.fmean(proxies)
    return f"{statistics.fmean(golds) / gain:.0%}" if gain > 0 else ""


def results(found: Found) -> dict[str, Result]:
    """Return the gain in gold against the proxy's, by setting."""
    entries: dict[str, Result] = {}
    for (size, tasks), seeds in _sorted(found.best_of()):
        curves = [one for _, one in seeds]
        proxy = statistics.fmean(PEOPLE_UNIT * float(one.proxy_gains.mean(axis=0)[-1]) for one in curves)
        gold = statistics.fmean(float(one.gold_gains.mean(axis=0)[-1]) for one in curves)
        entries[f"best_of_n_{size.name}_{tasks}"] = Result(gold, "gold", proxy, "proxy's gain")
    for guarded in (False, True):
        for (size, tasks, guard), runs in _sorted(found.runs(guarded=guarded)):
            curves_of_seeds = list(runs.values())
            gold = statistics.fmean(one.last("gold") - found.start for one in curves_of_seeds)
            proxy = statistics.fmean(map(proxy_gain, curves_of_seeds))
            name = f"rloo_{size.name}_{tasks}" + ("" if guard == PLAIN else f"_{guard.split()[0].lower()}")
            entries[name.replace(",", "")] = Result(gold, "gold", proxy, "proxy's gain")
    return entries


def _coefficients(law: Sequence[Fit]) -> tuple[str, ...]:
    peak = fits.mean(law).peak
    return (
        shown([one.alpha for one in law]),
        shown([one.beta for one in law]),
        f"{fits.mean(law).residual:.3f}",
        "none" if peak is None else f"{peak:.1f}",
    )


def _largest_n(found: Found) -> int:
    return next(iter(found.best_of().values()))[0][1].n[-1]


def _sorted(groups: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Return settings by the size of the reward model and the labels."""
    return sorted(groups.items(), key=lambda item: (item[0][0].layers, item[0][0].width, *item[0][1:]))
