"""What `fairlead data check` writes for people: three tables, and sentences about what is worth a look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fairlead.data.check import SourceReport, Spread


def show(console: Console, reports: Sequence[SourceReport], notes: Sequence[str]) -> None:
    """Writes everything that was found."""
    for report in reports:
        console.print(Text.assemble(f"{report.kind}: ", (", ".join(report.sources), "dim")), soft_wrap=True)
    console.print()
    if any(report.lines for report in reports):
        console.print(_lines(reports), "", sep="\n")
    lengths = _lengths(reports)
    if lengths.row_count:
        console.print(lengths, "", sep="\n")
    for note in notes if lengths.row_count else ():
        console.print(Text(note, style="dim"))
    remarks = [(report.kind, remark) for report in reports for remark in _remarks(report)]
    for kind, remark in remarks:
        console.print(Text.assemble((f"{kind}: ", "yellow"), remark))
    if remarks and any(report.errors for report in reports):
        console.print()
    for report in reports:
        for error in report.errors:
            console.print(Text(error, style="red"), soft_wrap=True)
        untold = report.bad + report.broken - len(report.errors)
        if untold:
            console.print(Text(f"and {untold:,} more of {report.kind}; --limit tells more", style="dim"))


def wrong(reports: Sequence[SourceReport]) -> str:
    """What keeps a stage from reading the data, in a few words; empty if nothing does."""
    counts = (
        (sum(report.bad for report in reports), "bad line"),
        (sum(report.broken for report in reports), "unreadable source"),
    )
    return ", ".join(_count(number, what) for number, what in counts if number)


def _lines(reports: Sequence[SourceReport]) -> Table:
    table = _table("", "lines", "bad", "train", "held out")
    table.add_column("formats")
    for report in reports:
        table.add_row(
            report.kind,
            f"{report.lines:,}",
            Text(f"{report.bad:,}", style="red" if report.bad else ""),
            f"{report.train:,}",
            f"{report.heldout:,}",
            "\n".join(f"{count:,} × {name}" for name, count in sorted(report.formats.items())),
        )
    return table


def _lengths(reports: Sequence[SourceReport]) -> Table:
    table = _table("lengths in", "median", "90%", "99%", "longest", "limit", "cut", "left out")
    for report in reports:
        ends = [_number(report.limit), _number(report.truncated), _number(report.dropped)]
        for part, spread in {"prompt": report.prompt, "answer": report.answer}.items():
            if spread is not None:
                table.add_row(f"{report.unit}: {report.kind}, {part}", *_cells(spread), *ends)
                ends = ["", "", ""]
    return table


def _remarks(report: SourceReport) -> Iterator[str]:
    """What a person should know before trusting figures made of the data."""
    counts = (
        (report.duplicates, "line says", "lines say", "again what another says"),
        (report.repeated_prompts, "line has", "lines have", "a prompt that has stood before"),
        (
            report.on_both_sides,
            "held-out line has",
            "held-out lines have",
            "a prompt that is trained on, but for case and white space",
        ),
        (
            report.elsewhere,
            "held-out line has",
            "held-out lines have",
            "a prompt that another source trains on, but for case and white space",
        ),
        (report.ties, "pair is", "pairs are", "tied"),
        (report.all_tied, "ranking is", "rankings are", "tied throughout, and left out"),
        (report.alike, "bad line has", "bad lines have", "`chosen` and `rejected` alike"),
        (report.empty_answers, "answer is", "answers are", "empty"),
        (report.too_short, "sentence is", "sentences are", "over with the prompt, and left out"),
    )
    for count, one, many, what in counts:
        if count:
            yield f"{count:,} {one if count == 1 else many} {what}"
    if report.train and not report.heldout:
        yield "nothing is held out: there will be no held-out figures"
    if report.heldout and not report.train:
        yield "everything is held out: nothing is left to train on"


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    return table


def _cells(spread: Spread) -> list[str]:
    return [f"{value:,.0f}" for value in (spread.median, spread.p90, spread.p99, spread.longest)]


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
