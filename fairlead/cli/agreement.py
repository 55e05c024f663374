"""`fairlead agreement`: how far labelers agree, who differs from the others, and what sways them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.output import Json, fail, json_text, print_in_full, with_examples

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fairlead.data.judged import JudgedLine
    from fairlead.judgments import Agreement, Judgment, LabelerFigures, LengthBias, PositionBias

_AGREEMENT = with_examples(
    "Show how far labelers agree who ranked the same answers, and where they depend on position and length."
    "\n\n"
    "The sources are rankings as for data.preferences, with a key `labeler` in each line: files, folders or "
    "datasets of the hub. Lines are oldest first; the last one of a labeler on a task counts. The rate is "
    "over pairs that neither of two labelers tied; intervals are by resampling tasks. See docs/feedback.md.",
    "fairlead agreement rankings.jsonl",
    "fairlead agreement monday.jsonl tuesday.jsonl --by round",
    "fairlead agreement rankings.jsonl --lowest 0.65 --json",
)
_FIELD = "RANKINGS"


@dataclass(frozen=True, slots=True)
class _Labeler:
    """What is shown of one labeler."""

    figures: LabelerFigures
    position: PositionBias
    length: LengthBias


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("agreement", help=_AGREEMENT)(agreement)


def agreement(
    rankings: Annotated[
        list[str], typer.Argument(metavar=_FIELD, help="Rankings with a key `labeler` in each line.")
    ],
    by: Annotated[
        str,
        typer.Option("--by", metavar="KEY", help="Show the agreement for each value of a key, too."),
    ] = "",
    last: Annotated[
        int, typer.Option("--last", min=1, help="How many shared tasks of a labeler count for a flag.")
    ] = 30,
    lowest: Annotated[
        float,
        typer.Option("--lowest", min=0, max=1, help="Flag a labeler whose agreement over them is lower."),
    ] = 0.60,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the resampling.")] = 0,
    as_json: Json = False,
) -> None:
    """Read the rankings and print the figures."""
    from rich.console import Console

    from fairlead.data.judged import newest
    from fairlead.judgments import agreement as agreement_of
    from fairlead.judgments import by_two_labelers, leave_one_out, length_bias, position_bias

    with Console(stderr=True).status("reading"):
        lines = list(_read(rankings))
        known = newest(lines)
        judgments = [one.judgment for one in known]
        whole = agreement_of(judgments, seed=seed)
        groups = {name: agreement_of(own, seed=seed) for name, own in _groups(known, by).items()}
        position, length = position_bias(judgments), length_bias(judgments, seed=seed)
        labelers = [
            _labeler(one, judgments, seed=seed)
            for one in leave_one_out(judgments, last=last, after=last, lowest=lowest)
        ]
    if as_json:
        found = {
            **whole.as_json(),
            "replaced": len(lines) - len(known),
            "position": position.as_json(),
            "length": length.as_json(),
            "labelers": [
                one.figures.as_json() | {"position": one.position.as_json(), "length": one.length.as_json()}
                for one in labelers
            ],
            "two_labelers": [two.as_json() for two in by_two_labelers(judgments)],
            **({"by": {name: own.as_json() for name, own in groups.items()}} if by else {}),
        }
        typer.echo(json_text(found, encoding=sys.stdout.encoding))
        return
    console = Console()
    _show_whole(console, whole, position, length)
    if replaced := len(lines) - len(known):
        console.print(f"{replaced:,} lines were replaced by a later one of the same labeler on the same task")
    if groups:
        print_in_full(console, "", _by_group(groups, by))
    print_in_full(console, "", _by_labeler(labelers, last))


def _read(sources: Sequence[str]) -> Iterator[JudgedLine]:
    from fairlead.config import load
    from fairlead.data.judged import judged
    from fairlead.data.sources import scan
    from fairlead.errors import DataError

    config = load()
    for name in sources:
        for line in scan(config, name, field=_FIELD):
            if isinstance(line, DataError):
                raise line
            yield judged(line)


def _groups(lines: Sequence[JudgedLine], key: str) -> dict[str, list[Judgment]]:
    """Return the judgments by the value of a key of their lines; none without a key."""
    groups: dict[str, list[Judgment]] = {}
    for one in lines if key else ():
        groups.setdefault(str(one.line.values.get(key, "–")), []).append(one.judgment)
    if key and not any(one.line.has(key) for one in lines):
        keys = ", ".join(dict.fromkeys(name for one in lines for name in one.line.values))
        fail(f"--by: got {key!r}, allowed: a key of the lines: {keys}")
    return dict(sorted(groups.items()))


def _labeler(figures: LabelerFigures, judgments: Sequence[Judgment], *, seed: int) -> _Labeler:
    from fairlead.judgments import length_bias, position_bias

    own = [one for one in judgments if one.labeler == figures.labeler]
    return _Labeler(figures, position_bias(own), length_bias(own, seed=seed))


def _show_whole(console: Console, whole: Agreement, position: PositionBias, length: LengthBias) -> None:
    table = _table("", ("", "left"), ("", "left"), ("", "left"))
    table.show_header = False
    if whole.tasks:
        of = f"of {whole.compared:,} comparisons on {whole.tasks:,} tasks that several labelers judged"
        table.add_row("agreement", _percent(whole.rate), _interval(whole.interval), of)
        tied = "of pairs of two labelers are no comparison: at least one tied"
        table.add_row("ties", _percent(whole.tied), "", tied)
        alpha = "Krippendorff's, ordinal on worse, tied, better; 0 is chance"
        table.add_row("alpha", _number(whole.alpha), _interval(whole.alpha_interval, percent=False), alpha)
    for size, counts in position.first_places.items():
        shares = ", ".join(f"{count / sum(counts):.0%}" for count in counts)
        table.add_row("first places", shares, "", f"by position shown, of {sum(counts):,} rankings of {size}")
    if position.p_value is not None:
        chance = f"χ² = {position.chi_square:.1f} with {position.degrees} degrees of freedom"
        table.add_row("", f"p = {_number(position.p_value, 4)}", "", chance)
    if length.longer_wins is not None:
        slope = f"of {length.compared:,} pairs; odds grow as length to the power {length.slope:.2f}"
        table.add_row("longer wins", _percent(length.longer_wins), _interval(length.interval), slope)
    print_in_full(console, table)
    if not whole.tasks:
        console.print(
            f"none of the {whole.judgments:,} judgments shares a task with one of another labeler, so there "
            "is no agreement to show"
        )


def _by_labeler(labelers: Sequence[_Labeler], last: int) -> Table:
    from rich.text import Text

    names = ("judgments", f"last {last} shared", "agreement", "ties", "first shown wins", "longer wins")
    table = _table("labeler", *((name, "right") for name in names), ("", "left"))
    for one in sorted(labelers, key=lambda found: (found.figures.agreement is None, found.figures.agreement)):
        figures = one.figures
        table.add_row(
            Text(figures.labeler),
            f"{figures.judgments:,}",
            f"{figures.tasks:,}",
            _percent(figures.agreement),
            _percent(figures.tied),
            _percent(_first_shown(one.position)),
            _percent(one.length.longer_wins),
            Text("look at this labeler" if figures.flagged else "", style="red"),
        )
    return table


def _by_group(groups: Mapping[str, Agreement], key: str) -> Table:
    from rich.text import Text

    names = ("judgments", "shared tasks", "agreement", "95% interval", "ties", "alpha")
    table = _table(key, *((name, "right") for name in names))
    for name, own in groups.items():
        table.add_row(
            Text(name),
            f"{own.judgments:,}",
            f"{own.tasks:,}",
            _percent(own.rate),
            _interval(own.interval),
            _percent(own.tied),
            _number(own.alpha),
        )
    return table


def _first_shown(position: PositionBias) -> float | None:
    """Return the share of first places of the answer that was shown first."""
    first = sum(counts[0] for counts in position.first_places.values())
    return first / position.judgments if position.judgments else None


def _table(first: str, *columns: tuple[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, no_wrap=True)
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=True)
    return table


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(interval: tuple[float, float] | None, *, percent: bool = True) -> str:
    if interval is None:
        return ""
    low, high = (f"{end:.1%}" if percent else f"{end:.3f}" for end in interval)
    return f"{low} to {high}"
