"""Two terms of a reward in conflict: the quickstart's reward model, and short answers.

RLOO from one SFT policy with the sum of both terms, for several weights of `length`, and with a limit of the
mean length whose λ the trainer adapts. Every finished run is a file in benchmarks/out/pareto, so the same
command continues an interrupted benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import quickstart, seed_points
from benchmarks.methods import measured
from benchmarks.methods.outcome import Outcome, Seeds
from benchmarks.methods.recipes import Online
from benchmarks.parcel_task.tables import show
from benchmarks.result import OUT, Result, Settings
from benchmarks.seed_points import Series
from examples.parcel_help import methods as quickstart_methods

FOLDER = OUT / "pareto"
WEIGHTS = (0, 0.25, 0.5, 1, 2, 4)
WORDS = (8, 12)
"""Limits of the mean length."""
MINUTES = 60.0
MAX_WORDS = 8
"""Answers up to this length have the highest score of the term `length`."""
_TERMS = "reward.combined.terms"
_SIZES: dict[str, object] = {"ppo.updates": 24, "ppo.batch_size": 128, "ppo.mini_batch_size": 64}
_LEARNING: dict[str, object] = {
    f"ppo.{key}": value for key, value in quickstart_methods.METHODS["rloo"].items()
} | _SIZES


def run(settings: Settings) -> dict[str, Result]:
    """Measure all weights and limits, seed by seed, until the time is up; what has not finished is listed.

    Raises:
        ProcessFailed: if none has finished.
    """
    source = quickstart.ensure(settings.source)
    with measured(recipes(source / "reward_model"), settings, source, FOLDER, minutes=MINUTES) as found:
        show(table(found.seeds, found.start), found.out / "pareto.md")
        for suffix in ("png", "svg"):
            seed_points.draw(
                [Series(one.title, [_point(outcome) for outcome in one.outcomes]) for one in found.seeds],
                Series("SFT", [_point(found.start)]),
                found.out / f"pareto.{suffix}",
                x_label="words per answer",
                y_label="score of the reward model, held-out prompts",
            )
    entries = {}
    for one in found.seeds:
        what = "SFT"
        entries[f"pareto_{one.name}_score"] = Result(one.mean("score"), "score", found.start.score, what)
        entries[f"pareto_{one.name}_words"] = Result(one.mean("words"), "words", found.start.words, what)
    return entries


def recipes(reward_model: Path) -> list[Online]:
    """Return a method for each weight and for each limit."""
    return [
        *(
            _method(f"weight-{weight:g}", f"weight {weight:g}", _weighted(reward_model, weight))
            for weight in WEIGHTS
        ),
        *(
            _method(f"limit-{words}", f"at most {words} words", _limited(reward_model, words))
            for words in WORDS
        ),
    ]


def table(found: Sequence[Seeds], start: Outcome) -> str:
    """Return a table in Markdown: means over seeds, ± standard deviations."""
    lines = [
        "| run | seeds | score of the reward model | gold | words per answer | KL, nats |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for one in (*found, Seeds("sft", "SFT", [start])):
        cells = [one.title, str(len(one.outcomes)) if one.name != "sft" else ""]
        cells += [one.shown("score", 2), one.shown("gold", 2), one.shown("words", 1), one.shown("kl", 2)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _method(name: str, title: str, reward: dict[str, object]) -> Online:
    return Online(name, title, {**_LEARNING, "reward.path": "", "reward.engine": "combined", **reward})


def _weighted(reward_model: Path, weight: float) -> dict[str, object]:
    return {
        f"{_TERMS}.helpful.path": reward_model,
        f"{_TERMS}.short.shape": "length",
        f"{_TERMS}.short.max_words": MAX_WORDS,
        f"{_TERMS}.short.weight": weight,
    }


def _limited(reward_model: Path, words: int) -> dict[str, object]:
    return {
        f"{_TERMS}.helpful.path": reward_model,
        f"{_TERMS}.words.function": "benchmarks.word_count:tens",
        "reward.combined.rule": "constraint",
        "reward.combined.constrained": "words",
        "reward.combined.limit": words / 10,
        "reward.combined.multiplier": 0.0,
        "reward.combined.multiplier_step": 0.5,
    }


def _point(outcome: Outcome) -> tuple[float, float]:
    return outcome.words, outcome.score
