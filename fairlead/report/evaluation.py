"""The card of `fairlead evaluate` as sections of a page: a page of its own, or a part of a run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead.config.saving import replace_text
from fairlead.evaluation.card import FORMAT, SUITES, cells
from fairlead.report.page import Page, PageAnswer, PageSample, PageSection, Table, render

_MARKED = "A star marks a change whose 95% interval is without 0."


def sections(card: Mapping[str, Any]) -> list[PageSection]:
    """Return a section for each suite of a card; empty without a card of this version's format."""
    if card.get("format") != FORMAT:
        return []
    found = []
    for suite, title in SUITES.items():
        rows = [row for row in (*card["figures"], *card["instruments"]) if row["suite"] == suite]
        if rows:
            found.append(
                PageSection(f"Evaluation: {title.lower()}", _text(suite, card), tables=_tables(rows))
            )
    return found


def page(card: Mapping[str, Any]) -> Page:
    """Return the page of a card."""
    compared = bool(card.get("against"))
    samples = tuple(
        PageSample(
            str(row["prompt"]),
            PageAnswer(str(row["found"]["against"]["text"])) if compared else None,
            PageAnswer(str(row["found"]["model"]["text"])),
        )
        for row in card["examples"]
    )
    return Page(
        title="Evaluation card",
        lead=" ".join(_made_by(card)),
        headlines=(),
        sections=tuple(sections(card)),
        samples=samples,
        samples_text="Some answers, chosen by their place in the file and not by what they say.",
        samples_title="Answers",
        footer=f"Made by Fairlead {card['fairlead']}.",
    )


def write(folder: Path, card: Mapping[str, Any]) -> None:
    """Write card.html."""
    replace_text(folder / "card.html", render(page(card)))


def _text(suite: str, card: Mapping[str, Any]) -> str:
    if suite == "safety":
        return " ".join([*_made_by(card), str(card["does_not_show"]), _MARKED])
    return "How often the means of measuring are right on labelled answers." if suite == "instruments" else ""


def _made_by(card: Mapping[str, Any]) -> list[str]:
    names = {"model": "Model", "against": "Before", "reward": "Reward", "judge": "Judge"}
    return [f"{name}: {card[key]}." for key, name in names.items() if card.get(key)]


def _tables(rows: Sequence[Mapping[str, Any]]) -> tuple[Table, ...]:
    """Return the table of figures, and one of what they mean."""
    compared = any("against" in row for row in rows)
    columns = ("figure", "n", *(("before", "after", "change") if compared else ("value",)), "better")
    values = Table(columns, tuple(tuple(cells(row, compared=compared)) for row in rows), texts=("better",))
    meanings = {
        row["name"].partition(":")[0]: (row["title"].partition(": ")[0], row["definition"], row["limit"])
        for row in reversed(rows)
    }
    meaning = Table(
        ("figure", "what it is", "its limit"),
        tuple(reversed(meanings.values())),
        texts=("what it is", "its limit"),
    )
    return values, meaning
