"""The figures as Markdown, for a terminal and for docs/results-real-text.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from examples.helpful_harmless.ai_feedback import judges
from examples.helpful_harmless.ai_feedback.arms import Arm

Row = Mapping[str, Any]


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the tables of labels by people, of those by one judge each, and of mixtures.

    Controls have no rows, but columns.
    """
    arms = {_arm(row): row for row in figures["arms"]}
    right = {row["judge"]: row for row in figures["judges"]}
    shown = [row for name, row in arms.items() if name.judge in ("", *judges.TITLES) and not name.weighted]
    learnt = max(row["people"] for row in shown)
    single = [row for row in shown if not row["people"] and row["judged"] == learnt]
    return "\n".join(
        [
            f"{figures['repetitions']} repetitions; {figures['pairs']} pairs of {figures['questions']} "
            f"questions, {figures['heldout']:.0f} held out on average.",
            "",
            *_table(
                ("labels by people", "accuracy", "s.d.", "log loss", "confidence", "calibration error"),
                ((str(row["people"]), *_quality(row)) for row in shown if not row["judged"]),
            ),
            "",
            *_table(
                (
                    *(f"{learnt} labels by", "labels as people's", "accuracy", "s.d.", "log loss"),
                    *("confidence", "calibration error", "above as many errors at random"),
                    "worth labels by people",
                ),
                (_one_judge(row, right[row["judge"]]) for row in single),
            ),
            "",
            *_table(
                (
                    *("labels by people", "other labels", "accuracy", "above nothing added"),
                    *("above labels at random", "above as many errors at random"),
                    "with weight 2a − 1, above nothing added",
                ),
                (
                    _mixture(row, arms.get(replace(name, weighted=True)))
                    for name, row in arms.items()
                    if row in shown and row["people"] and row["judged"]
                ),
                texts=2,
            ),
        ]
    )


def _arm(row: Row) -> Arm:
    return Arm(**{one.name: row[one.name] for one in fields(Arm)})


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, texts: int = 1) -> list[str]:
    marks = ("---",) * texts + ("--:",) * (len(header) - texts)
    return [f"| {' | '.join(cells)} |" for cells in (header, marks, *rows)]


def _one_judge(row: Row, right: Row) -> tuple[str, ...]:
    worth = _with_interval(row["worth"], "{:.0f}".format)
    title = judges.title(row["judge"])
    return title, _with_interval(right, _share), *_quality(row), _above(row, "control"), worth


def _mixture(row: Row, weighted: Row | None) -> tuple[str, ...]:
    return (
        *(str(row["people"]), f"{row['judged']} by: {judges.title(row['judge'])}"),
        _with_interval(row, _share),
        *(_above(row, name) for name in ("nothing_added", "random", "control")),
        _above(weighted, "nothing_added") if weighted else "",
    )


def _quality(row: Row) -> tuple[str, ...]:
    return (
        _with_interval(row, _share),
        f"{100 * row['deviation']:.1f}",
        f"{row['loss']:.3f}",
        _share(row["confidence"]),
        f"{row['calibration_error']:.3f}",
    )


def _above(row: Row, name: str) -> str:
    found = row["above"].get(name)
    return _with_interval(found, _signed) if found else ""


def _with_interval(row: Row, form: Callable[[float], str]) -> str:
    low, high = (form(end) for end in row["interval"])
    return f"{form(row['value'])} ({low} to {high})"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _signed(value: float) -> str:
    return f"{value:+.1%}".replace("-", "−")
