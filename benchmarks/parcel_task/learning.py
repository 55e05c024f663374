"""A run of reinforcement learning in this process, with gold, score and KL of every update.

The loop is `benchmarks.one_process`: decoder, scorers and learner of the product, without services. A run
may change the outcomes of an update before they are learnt from, such as lose some on purpose.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.one_process import Loop
from benchmarks.parcel_task.reward_models import CUT_OFF_PENALTY
from examples.parcel_help import gold
from examples.parcel_help.fresh_labels import Labeler
from fairlead.config import RunConfig
from fairlead.types import FinishReason, Outcome
from trainer.ppo.monitor import Monitor


@dataclass(frozen=True, slots=True)
class Point:
    """The answers of one update, drawn before it learnt from them."""

    update: int
    """From 1."""
    kl: float
    """KL to the policy at the start, nats per answer, estimated on these answers."""
    proxy: float
    """Mean score of the reward model; an answer without an end costs `CUT_OFF_PENALTY`."""
    gold: float
    """Mean gold reward."""
    words: float
    """Mean length."""
    answers: int
    """Answers that were generated."""
    learned: int
    """Answers that were trained on; one that was doubled counts twice."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A finished run."""

    points: tuple[Point, ...]
    """Every update."""
    alerts: tuple[Mapping[str, Any], ...] = ()
    """What the guard said, see `trainer.ppo.guard.Alert`."""

    @staticmethod
    def of(kept: Mapping[str, Any]) -> Curve:
        """Return the curve of a file."""
        return Curve(tuple(Point(**point) for point in kept["points"]), tuple(kept["alerts"]))

    def last(self, figure: str, *, updates: int = 4) -> float:
        """Return the mean of a figure over the last updates."""
        return statistics.fmean(getattr(point, figure) for point in self.points[-updates:])

    def __str__(self) -> str:
        return (
            f"gold {self.points[0].gold:.2f} → {self.last('gold'):.2f}, "
            f"score {self.points[0].proxy:.2f} → {self.last('proxy'):.2f}, KL {self.last('kl'):.2f}"
        )


Change = Callable[[list[Outcome], int], Sequence[Outcome]]
"""Returns what an update, counted from 0, learns from, given the outcomes of its tasks."""
Watch = Callable[[Loop, Sequence[Outcome], int], None]
"""Called after an update with the outcomes of its tasks, such as to replace the reward model."""


def unchanged(outcomes: list[Outcome], update: int) -> Sequence[Outcome]:
    """Learn from every outcome once."""
    return outcomes


def learn(
    config: RunConfig, *, change: Change = unchanged, watch: Watch | None = None, guarded: bool = False
) -> Curve:
    """Run every update and return the curve.

    Args:
        config: names models and prompts; its folder is written to only if `guarded`.
        change: see `Change`.
        watch: see `Watch`.
        guarded: let simulated people compare answers of every update with earlier ones, and the guard judge;
            it never stops the run.
    """
    loop = Loop(config)
    monitor, labeler = _guard(config, loop) if guarded else (None, None)
    points = []
    for number in range(config.ppo.updates):
        outcomes = loop.outcomes(number)
        kept = change(outcomes, number)
        rollouts = loop.rollouts(kept)
        figures = loop.learn(rollouts, number) if rollouts is not None else {}
        points.append(_point(loop, outcomes, number, learned=sum(len(one.rollouts) for one in kept)))
        if monitor is not None and labeler is not None and rollouts is not None:
            monitor.observe(rollouts, figures, update=number + 1)
            labeler.label_new()
        if watch is not None:
            watch(loop, outcomes, number)
    alerts = monitor.result(updates=config.ppo.updates)["guards"] if monitor is not None else ()
    return Curve(tuple(points), tuple(alerts))  # type: ignore[arg-type]  # dictionaries of `asdict`


def _guard(config: RunConfig, loop: Loop) -> tuple[Monitor, Labeler]:
    fresh = Path(config.data.fresh_rankings)
    return (
        Monitor(config, loop.tokenizer),
        Labeler(config.folder.rollout_samples, fresh, seed=config.seed),
    )


def _point(loop: Loop, outcomes: Sequence[Outcome], number: int, *, learned: int) -> Point:
    golds, words, divergences, scores = [], [], [], []
    for outcome in outcomes:
        for rollout in outcome.rollouts:
            text = loop.text(rollout.completion.token_ids)
            ended = rollout.completion.finish_reason is FinishReason.STOP
            golds.append(gold.reward(outcome.task.prompt_text, text, ended=ended))
            words.append(len(text.split()))
            divergences.append(sum(rollout.completion.logprobs) - sum(rollout.reference_logprobs))
            scores.append(rollout.score - (0.0 if ended else CUT_OFF_PENALTY))
    return Point(
        update=number + 1,
        kl=statistics.fmean(divergences),
        proxy=statistics.fmean(scores),
        gold=statistics.fmean(golds),
        words=statistics.fmean(words),
        answers=len(golds),
        learned=learned,
    )
