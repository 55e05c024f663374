"""The figures as Markdown, for a terminal and for docs/results-real-text.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from examples.helpful_harmless.ai_feedback import judges

Row = Mapping[str, Any]


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the tables of judges, of labels by one source, and of mixtures."""
    arms = figures["arms"]
    learnt = max(row["people"] for row in arms)
    return "\n".join(
        [
            f"{figures['repetitions']} repetitions; {figures['pairs']} pairs of {figures['questions']} "
            f"questions, {figures['heldout']:.0f} held out on average.",
            "",
            *_table(("judge", "labels that are those of people"), map(_judge, figures["judges"])),
            "",
            *_table(
                ("labels by people", "accuracy", "s.d.", "log loss", "confidence", "calibration error"),
                ((str(row["people"]), *_quality(row)) for row in arms if not row["judged"]),
            ),
            "",
            *_table(
                (
                    *(f"{learnt} labels by", "accuracy", "s.d.", "log loss", "confidence"),
                    *("calibration error", "above as many errors at random", "worth labels by people"),
                ),
                (_one_source(row) for row in arms if not row["people"] and row["judged"] == learnt),
            ),
            "",
            *_table(
                (
                    *("labels by people", "other labels", "accuracy", "above nothing added"),
                    *("above labels at random", "above as many errors at random", "above weight 1"),
                ),
                (_mixture(row) for row in arms if row["people"] and row["judged"]),
                texts=2,
            ),
        ]
    )


def _table(header: tuple[str, ...], rows: Any, *, texts: int = 1) -> list[str]:  # noqa: ANN401 - an iterable
    marks = ["---"] * texts + ["---:"] * (len(header) - texts)
    return [f"| {' | '.join(cells)} |" for cells in (header, marks, *rows)]


def _judge(row: Row) -> tuple[str, ...]:
    return judges.title(row["judge"]), _with_interval(row, _share)


def _one_source(row: Row) -> tuple[str, ...]:
    worth = _with_interval(row["worth"], "{:.0f}".format)
    return judges.title(row["judge"]), *_quality(row), _above(row, "control"), worth


def _mixture(row: Row) -> tuple[str, ...]:
    weight = " with weight 2a − 1" if row["weighted"] else ""
    by = f"{row['judged']} by: {judges.title(row['judge'])}{weight}"
    above = (_above(row, name) for name in ("nothing_added", "random", "control", "unweighted"))
    return str(row["people"]), by, _with_interval(row, _share), *above


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
