"""The files of the check: `gpu_check.json` and `gpu_check.md`. Needs the standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu_check.figures import Figure


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a section."""

    section: str
    """Its name."""
    seconds: float
    """Time that it took, the start of its process included."""
    figures: tuple[Figure, ...]
    """What it measured."""
    failure: str = ""
    """Why it was skipped or ended early; empty if it is complete."""


def write(folder: Path, title: str, outcomes: Sequence[Outcome]) -> None:
    """Write both files; call it after every section, so that they exist if the check is stopped."""
    body = {"title": title, "sections": [asdict(outcome) for outcome in outcomes]}
    (folder / "gpu_check.json").write_text(json.dumps(body, indent=2) + "\n")
    (folder / "gpu_check.md").write_text("".join(f"{line}\n" for line in _lines(title, outcomes)))


def _lines(title: str, outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield f"{title}\n"
    yield "| section | figure | value | unit | note |"
    yield "|---|---|---:|---|---|"
    for outcome in outcomes:
        for figure in outcome.figures:
            value = "not measured" if figure.value is None else f"{figure.value:,.4g}"
            yield f"| {outcome.section} | {figure.name} | {value} | {figure.unit} | {_cell(figure.note)} |"
    yield ""
    for outcome in outcomes:
        state = f"not complete: {_cell(outcome.failure)}" if outcome.failure else "complete"
        yield f"- {outcome.section}: {outcome.seconds:.0f} s, {state}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
