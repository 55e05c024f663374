"""Tables and results of finished runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.against_trl.methods import Method
from benchmarks.against_trl.outcome import Outcome, episodes_to
from benchmarks.against_trl.sides import OURS, SIDES, TRL, Run
from benchmarks.parcel_task.over_seeds import shown
from benchmarks.result import Result

GOLD = 0.9
"""Gold reward whose episodes are reported: most of the way from the SFT policy, 0.1, to the ends, 1.2."""

_Figure = Callable[[Outcome], float]
_COSTS: tuple[tuple[str, str, _Figure, bool], ...] = (
    ("cpu", "CPU-s/episode", lambda it: it.cpu_seconds, True),
    ("cpu_whole_run", "CPU-s", lambda it: it.whole_cpu_seconds, False),
    ("wall", "s/episode", lambda it: it.seconds, False),
)
"""Name, unit, figure, and whether the method's limit applies."""
_ENDS: tuple[tuple[str, str, _Figure], ...] = (
    ("gold", "gold", lambda it: it.end.gold),
    ("kl", "nats/answer", lambda it: it.end.kl),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A method with the seeds that both sides have finished."""

    method: Method
    """The method."""
    seeds: tuple[int, ...]
    """Those seeds."""
    sides: Mapping[str, Sequence[Outcome]]
    """Their outcomes by side, in the order of the seeds."""

    @staticmethod
    def of(methods: Sequence[Method], finished: Mapping[Run, Outcome]) -> list[Comparison]:
        """Return the comparisons that can be made."""
        found = []
        for method in methods:
            by_side = {
                side: {
                    run.seed: it for run, it in finished.items() if (run.method, run.side) == (method, side)
                }
                for side in SIDES
            }
            seeds = tuple(sorted(by_side[OURS].keys() & by_side[TRL].keys()))
            if seeds:
                sides = {side: [by_side[side][seed] for seed in seeds] for side in SIDES}
                found.append(Comparison(method, seeds, sides))
        return found

    def median(self, side: str, what: _Figure) -> float:
        """Return the median over seeds."""
        return statistics.median(what(outcome) for outcome in self.sides[side])


def results(found: Sequence[Comparison], *, prefix: str = "trl") -> dict[str, Result]:
    """Return medians over seeds of costs, and means of gold and KL."""
    entries: dict[str, Result] = {}
    for one in found:
        method = one.method
        name, what = f"{prefix}_{method.name}", f"TRL {method.release}, {method.title}"
        for suffix, unit, of, limit in _COSTS:
            ours, theirs = (one.median(side, of) for side in SIDES)
            at_most = method.at_most if limit else None
            entries[f"{name}_{suffix}"] = Result(ours, unit, theirs, what, at_most=at_most)
        if not one.sides[OURS][0].points:
            continue
        for suffix, unit, of in _ENDS:
            ours, theirs = (statistics.fmean(map(of, one.sides[side])) for side in SIDES)
            entries[f"{name}_{suffix}"] = Result(ours, unit, theirs, what)
        ours, theirs = (one.median(side, _episodes) for side in SIDES)
        if math.isfinite(ours) and math.isfinite(theirs):
            entries[f"{name}_episodes_to_gold"] = Result(ours, f"episodes to gold {GOLD:g}", theirs, what)
    return entries


def table(found: Sequence[Comparison]) -> str:
    """Return a table in Markdown: costs are medians over seeds, gold and KL means with 95% intervals."""
    lines = [
        "| method | side | seeds | CPU-ms per episode | ÷ TRL | CPU-s of the run | gold | KL, nats "
        f"| episodes to gold {GOLD:g} |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        for side in SIDES:
            cost = one.median(side, lambda it: it.cpu_seconds)
            ratio = Result(cost, "", one.median(TRL, lambda it: it.cpu_seconds), "").ratio
            whole = one.median(side, lambda it: it.whole_cpu_seconds)
            outcomes = one.sides[side]
            ends = ["", "", ""]
            if outcomes[0].points:
                ends = [
                    shown([outcome.end.gold for outcome in outcomes]),
                    shown([outcome.end.kl for outcome in outcomes]),
                    _count(one.median(side, _episodes)),
                ]
            cells = [
                *(one.method.title, side if side == OURS else f"TRL {one.method.release}"),
                *(str(len(outcomes)), f"{1000 * cost:.2f}", f"{ratio:.2f}", f"{whole:.1f}", *ends),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        *(f"{one.method.title}: gold of ours − TRL's, by seed: {_difference(one)}" for one in found),
    ]
    return "\n".join(lines)


def _difference(one: Comparison) -> str:
    """Return the mean difference of gold over seeds, which share prompts and their order."""
    if not one.sides[OURS][0].points:
        return "not measured"
    pairs = zip(one.sides[OURS], one.sides[TRL], strict=True)
    return shown([ours.end.gold - theirs.end.gold for ours, theirs in pairs])


def _episodes(outcome: Outcome) -> float:
    return episodes_to(outcome.points, GOLD)


def _count(episodes: float) -> str:
    return f"{episodes:,.0f}" if math.isfinite(episodes) else "not reached"
