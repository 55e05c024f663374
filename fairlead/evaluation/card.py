"""The card of an evaluation, as JSON and as Markdown: every figure with its definition and its limit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fairlead.evaluation.figures import Figure

FILE = "card.json"
"""Name of the card in the folder of an evaluation."""
FORMAT = 1
"""Of the card; another one is not shown in reports."""
_EXAMPLES = 2
_EXAMPLE_CHARACTERS = 200
SUITES = {
    "safety": "Safety",
    "truth": "Truth",
    "sycophancy": "Sycophancy",
    "bias": "Bias of the reward and of the judge",
    "instruments": "Instruments",
}
"""Suites in the order of a card, with their headings."""
_MADE_BY = {"model": "Model", "against": "Before (`--against`)", "reward": "Reward", "judge": "Judge"}
_NOT_SHOWN = (
    "A card is a screening, not a certificate: it shows whether two models differ on these items and where "
    "to look. It does not show that a model is safe. The items are few, in English, of one turn, written by "
    "the people who wrote the rules, and public, so that a model may have been trained on them."
)


def card(
    found: Sequence[Figure],
    instruments: Sequence[Figure],
    *,
    made_by: Mapping[str, object],
    counts: Mapping[str, int],
    classifier: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the card for programs.

    Args:
        found: the figures.
        instruments: figures of the means of measuring.
        made_by: version of Fairlead, models, judge, sampling.
        counts: items by probe.
        classifier: what is known of the toxicity classifier.
        examples: lines to show.
    """
    return {
        "format": FORMAT,
        **made_by,
        "items": dict(counts),
        "figures": [figure.as_json() for figure in found],
        "instruments": [figure.as_json() for figure in instruments],
        "classifier": dict(classifier),
        "examples": [dict(line) for line in examples],
        "does_not_show": _NOT_SHOWN,
    }


def examples_of(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the first lines of each probe that has answers, for people to read."""
    found = []
    for probe in ("harmful", "harmless", "provocation", "question"):
        of_probe = [line for line in lines if line["probe"] == probe and line["variant"] == "neutral"]
        found += of_probe[:: max(1, len(of_probe) // _EXAMPLES)][:_EXAMPLES]
    return [{key: line[key] for key in ("probe", "prompt", "found")} for line in found]


def markdown(values: Mapping[str, Any]) -> str:
    """Return the card for people."""
    lines = ["# Evaluation card", ""]
    lines += [f"{name}: {_cell(values[key])}  " for key, name in _MADE_BY.items() if values.get(key)]
    if sampling := values.get("sampling"):
        warmth = f"temperature {sampling['temperature']:g}" if sampling["temperature"] else "greedy"
        lines.append(f"Answers: {warmth}, at most {sampling['max_new_tokens']} tokens  ")
    items = ", ".join(f"{count} {probe}" for probe, count in values["items"].items())
    lines += [f"Items: {items}", "", values["does_not_show"], ""]
    for suite, title in SUITES.items():
        rows = [row for row in (*values["figures"], *values["instruments"]) if row["suite"] == suite]
        if rows:
            lines += [f"## {title}", "", *table(rows), *_meanings(rows)]
    lines += _classifier(values["classifier"])
    lines += _examples(values["examples"])
    return "\n".join(lines).rstrip() + "\n"


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table of figures, before and after where two models are compared."""
    compared = any("against" in row for row in rows)
    columns = ["figure", "n", *(["before", "after", "change"] if compared else ["value"]), "better"]
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 2)}---|"]
    for row in rows:
        title, *others = cells(row, compared=compared)
        lines.append(f"| {' | '.join([_cell(title), *others])} |")
    return [*lines, ""]


def cells(row: Mapping[str, Any], *, compared: bool) -> list[str]:
    """Return the cells of a figure; a change with an interval without 0 is marked with a star."""
    unit = row["unit"]
    after = with_interval(row["value"], row["interval"], unit)
    if not compared:
        return [row["title"], str(row["n"]), after, row["better"]]
    before = row.get("against")
    if before is None:
        return [row["title"], str(row["n"]), "", after, "", row["better"]]
    change = row["change"]
    difference = with_interval(change["value"], change["interval"], unit, signed=True)
    if change["interval"] is not None:
        low, high = change["interval"]
        difference += " *" if low > 0 or high < 0 else ""
    shown = with_interval(before["value"], before["interval"], unit)
    return [row["title"], str(row["n"]), shown, after, difference, row["better"]]


def with_interval(value: float, interval: Sequence[float] | None, unit: str, *, signed: bool = False) -> str:
    """Return a value and its interval, if it has one, as text, shares in percent."""
    sign = "+" if signed else ""
    digits = 1 if unit == "tokens" else 3
    form, of_end = (f"{sign}.1%", f"{sign}.0%") if unit == "share" else (f"{sign}.{digits}f",) * 2
    if interval is None:
        return f"{value:{form}}"
    return f"{value:{form}} ({interval[0]:{of_end}} to {interval[1]:{of_end}})"


def summary(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the figures as names and values for the card of a model; empty without a card of this format."""
    if values.get("format") != FORMAT:
        return []
    found = []
    for row in values["figures"]:
        value = with_interval(row["value"], row["interval"], row["unit"])
        before = row.get("against")
        if before is not None:
            value = f"{with_interval(before['value'], before['interval'], row['unit'])} → {value}"
        found.append((f"{row['suite']}: {row['title']} (n = {row['n']})", value))
    return found


def _meanings(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the definition and the limit of each figure; figures of several groups have one."""
    seen = set()
    for row in rows:
        key = row["name"].partition(":")[0]
        if key in seen:
            continue
        seen.add(key)
        title = row["title"].partition(": ")[0]
        yield f"- **{title}**: {row['definition']} *Limit:* {row['limit']}"
    yield ""


def _classifier(about: Mapping[str, Any]) -> Iterator[str]:
    if not about.get("held_out"):
        return
    yield f"The toxicity classifier was trained on {about['trained_on']} Held out:"
    yield ""
    for name, row in about["held_out"].items():
        yield f"- {name}: right on {row['accuracy']:.1%} of {row['n']:,} texts; {row['note']}"
    yield ""


def _examples(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    compared = any("against" in row["found"] for row in rows)
    yield "## Answers"
    yield ""
    yield "Some answers, chosen by their place in the file and not by what they say."
    yield ""
    yield f"| probe | prompt | {'before | after' if compared else 'answer'} |"
    yield f"|---|---|{'---|---|' if compared else '---|'}"
    for row in rows:
        sides = (["against"] if compared else []) + ["model"]
        answers = [_cell(_short(row["found"][side]["text"])) for side in sides]
        yield f"| {row['probe']} | {_cell(row['prompt'])} | {' | '.join(answers)} |"
    yield ""


def _short(text: str) -> str:
    return text if len(text) <= _EXAMPLE_CHARACTERS else f"{text[: _EXAMPLE_CHARACTERS - 1]}…"


def _cell(text: object) -> str:
    """Return text as a cell of a table: on one line, with characters of Markdown and HTML escaped."""
    plain = " ".join(str(text).split())
    return re.sub(r"([\\|*_`\[#])", r"\\\1", plain).replace("<", "&lt;")
