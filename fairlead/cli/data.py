"""`fairlead data`: check data before training on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import Json, Overrides, fail, json_text, need, print_in_full, with_examples

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fairlead.config import RunConfig
    from fairlead.data.check import SourceReport, Spread
    from fairlead.data.lengths import Ruler

_CHECK = with_examples(
    "Check data: formats, lengths, what will be truncated or left out, duplicates, ties, and every bad line."
    "\n\n"
    "The source is a file, a folder, a dataset of the hub, or a run's file. For a run's file, all data that "
    "it names is checked, with its limits, split and tokenizer. Nothing is trained or written. The exit code "
    "is 2 if a line or source is bad.",
    "fairlead data check run.toml",
    "fairlead data check rankings.jsonl.gz --tokenizer Qwen/Qwen2.5-0.5B-Instruct",
    "fairlead data check 'org/name?split=train[:5000]' --as preferences --json",
    "fairlead data check demos.parquet --set sft.max_sequence_tokens=1024",
)


_SHOWN_KEYS = 20
"""Keys that are not read of which the report names the most frequent ones."""


class DataKind(StrEnum):
    """The kinds of data that `[data]` may name."""

    DEMONSTRATIONS = "demonstrations"
    PREFERENCES = "preferences"
    THUMBS = "thumbs"
    PROMPTS = "prompts"
    SENTENCES = "sentences"


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Check data before training on it.",
    )
    group.command("check", help=_CHECK)(check)
    app.add_typer(group, name="data")


def check(
    source: Annotated[str, typer.Argument(metavar="FILE|RUN.TOML", help="What to check.")],
    kind: Annotated[
        DataKind | None,
        typer.Option(
            "--as",
            metavar="KIND",
            help=f"Read the file as this kind: {', '.join(DataKind)}. By default the kind is detected.",
        ),
    ] = None,
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            metavar="MODEL",
            help="Model folder or hub id whose tokenizer counts tokens. Default: the run's models; "
            "without a run, words are counted.",
        ),
    ] = "",
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Maximum number of bad lines to show for each kind.")
    ] = 20,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Check the data and print what was found."""
    from rich.console import Console

    from fairlead.data.check import check as check_data

    config = _config(source, kind, overrides)
    with Console(stderr=True).status(f"reading {source}"):
        rulers, limits, notes = _rulers(config, tokenizer)
        reports = check_data(config, rulers=rulers, limits=limits, max_errors=limit)
    if not reports:
        fail(f"data: got no source in {source}, allowed: at least one")
    if as_json:
        found = {report.kind: asdict(report) for report in reports}
        typer.echo(json_text(found, encoding=sys.stdout.encoding))
    else:
        _show(Console(), reports, notes)
    if errors := _errors(reports):
        fail(errors)


def _config(source: str, kind: DataKind | None, overrides: list[str] | None) -> RunConfig:
    """Return the run's configuration, or one that names only the file."""
    from fairlead.config import load, parse_overrides
    from fairlead.data.kinds import detect

    settings = parse_overrides(overrides or [])
    if source.endswith(".toml"):
        if kind:
            fail("--as: got a run's file, allowed: a file, a folder or a dataset of the hub")
        return load(Path(source), overrides=settings)
    config = load(overrides=settings)
    found = kind.value if kind else detect(config, source)
    return config.model_copy(update={"data": config.data.model_copy(update={found: source})})


def _rulers(config: RunConfig, tokenizer: str) -> tuple[dict[str, Ruler], dict[str, int], list[str]]:
    """Return the ruler of each kind, the longest sequence of its stage, and notes for the user."""
    from fairlead.data.kinds import KINDS
    from fairlead.data.lengths import Words
    from fairlead.data.records import heldout_names
    from fairlead.errors import ModelLoadError

    trained = str(config.folder.sft_model) if config.folder.sft_model.is_dir() else config.model.path
    readers = {
        "demonstrations": (config.model.path or trained, config.sft.max_sequence_tokens),
        "preferences": (config.reward_model.path or trained, config.reward_model.max_sequence_tokens),
        "thumbs": (config.preference.path or trained, config.preference.max_sequence_tokens),
        "prompts": (config.policy.path or trained, config.policy.max_sequence_tokens),
        "sentences": (config.model.path or trained, config.sft.max_sequence_tokens),
    }
    rulers: dict[str, Ruler] = dict.fromkeys(KINDS, Words())
    limits: dict[str, int] = {}
    notes: dict[str, None] = {}
    if tokenizer:
        need("torch")
    elif find_spec("transformers") is None or find_spec("torch") is None:
        return rulers, limits, ["lengths are counted in words: a light install has no tokenizers"]
    for kind in (kind for kind in KINDS if getattr(config.data, kind) or heldout_names(config, kind)):
        path, most = readers[kind]
        if not (tokenizer or path):
            notes["lengths are counted in words; use --tokenizer for tokens and truncation"] = None
            continue
        try:
            rulers[kind], own = _reader(tokenizer or path, config)
        except ModelLoadError as error:
            if tokenizer:
                raise
            notes[f"lengths are counted in words: {error}"] = None
            continue
        if most or own:
            limits[kind] = min(most or own, own or most)
    return rulers, limits, list(notes)


def _reader(path: str, config: RunConfig) -> tuple[Ruler, int]:
    """Return a counter of a model's tokens, and the longest sequence that the model reads; 0 if unknown."""
    from fairlead.data.lengths import Tokens
    from fairlead.data.template import apply_settings
    from fairlead.errors import ModelLoadError
    from fairlead.nn.loading import load_config, load_tokenizer, max_sequence_tokens

    tokenizer = load_tokenizer(path)
    if path != str(config.folder.sft_model):
        apply_settings(tokenizer, config)
    ruler = Tokens(tokenizer)
    try:
        return ruler, max_sequence_tokens(load_config(path), 0)
    except ModelLoadError:  # a folder with only a tokenizer
        return ruler, 0


def _show(console: Console, reports: Sequence[SourceReport], notes: Sequence[str]) -> None:
    """Write everything that was found."""
    from rich.text import Text

    for report in reports:
        _show_sources(console, report)
    console.print()
    if any(report.lines for report in reports):
        print_in_full(console, _lines(reports), "")
    lengths = _lengths(reports)
    if lengths.row_count:
        print_in_full(console, lengths, "")
    for note in notes if lengths.row_count else ():
        print_in_full(console, Text(note, style="dim"))
    for report in reports:
        _show_keys(console, report)
    remarks = [(report.kind, remark) for report in reports for remark in _remarks(report)]
    for kind, remark in remarks:
        print_in_full(console, Text.assemble((f"{kind}: ", "yellow"), remark))
    if remarks and any(report.errors for report in reports):
        console.print()
    for report in reports:
        _show_errors(console, report)


def _show_sources(console: Console, report: SourceReport) -> None:
    from rich.text import Text

    parts = {report.kind: report.sources, f"{report.kind}, held out": report.heldout_sources}
    for what, names in parts.items():
        if names:
            print_in_full(console, Text.assemble(f"{what}: ", (", ".join(names), "dim")))


def _show_errors(console: Console, report: SourceReport) -> None:
    from rich.text import Text

    for error in report.errors:
        print_in_full(console, Text(error, style="red"))
    hidden = report.bad + report.broken - len(report.errors)
    if hidden:
        console.print(Text(f"and {hidden:,} more in {report.kind}; --limit shows more", style="dim"))


def _show_keys(console: Console, report: SourceReport) -> None:
    from rich.text import Text

    read = ", ".join(f"`{key}` as {meaning}" for key, meaning in report.read_as.items())
    often = sorted(report.not_read.items(), key=lambda item: -item[1])[:_SHOWN_KEYS]
    unread = ", ".join(f"`{key}` ({count:,} ×)" for key, count in often)
    if hidden := len(report.not_read) - len(often):
        unread += f" and {hidden:,} more"
    for what, keys in (("read", read), ("not read:", unread)):
        if keys:
            print_in_full(console, Text(f"{report.kind}: {what} {keys}", style="dim"))


def _errors(reports: Sequence[SourceReport]) -> str:
    """Return a short description of what prevents a stage from reading the data; empty if nothing does."""
    counts = (
        (sum(report.bad for report in reports), "bad line"),
        (sum(report.broken for report in reports), "unreadable source"),
    )
    found = [_count(number, what) for number, what in counts if number]
    if any(report.left_out is not None and report.left_out.is_most for report in reports):
        found.append("most pairs cannot be learnt, so the reward model refuses them")
    return ", ".join(found)


def _lines(reports: Sequence[SourceReport]) -> Table:
    from rich.text import Text

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
    table = _table("lengths in", "median", "90%", "99%", "longest", "limit", "truncated", "left out")
    for report in reports:
        ends = [_number(report.limit), _number(report.truncated), _number(report.dropped)]
        for part, spread in {"prompt": report.prompt, "answer": report.answer}.items():
            if spread is not None:
                table.add_row(f"{report.unit}: {report.kind}, {part}", *_cells(spread), *ends)
                ends = ["", "", ""]
    return table


def _remarks(report: SourceReport) -> Iterator[str]:
    """Yield warnings about figures that are computed from the data."""
    counts = (
        (report.duplicates, "line duplicates", "lines duplicate", "an earlier line"),
        (report.repeated_prompts, "line repeats", "lines repeat", "an earlier prompt"),
        (
            report.on_both_sides,
            "held-out line has",
            "held-out lines have",
            "a prompt that is also trained on (ignoring case and white space)",
        ),
        (
            report.elsewhere,
            "held-out line has",
            "held-out lines have",
            "a prompt that another source trains on (ignoring case and white space)",
        ),
        (report.ties, "pair is", "pairs are", "tied"),
        (report.all_tied, "ranking is", "rankings are", "left out: all its answers are tied"),
        (report.alike, "bad line has", "bad lines have", "identical `chosen` and `rejected`"),
        (report.empty_answers, "answer is", "answers are", "empty"),
        (report.too_short, "sentence is", "sentences are", "left out: no text follows the prompt"),
    )
    for count, one, many, what in counts:
        if count:
            yield f"{count:,} {one if count == 1 else many} {what}"
    if report.left_out is not None:
        yield from report.left_out.sentences(report.limit or 0)
    if report.control_tokens:
        name, count = max(report.control_tokens.items(), key=lambda item: item[1])
        yield (
            f"{count:,} plain prompts or texts contain {name}, which is read as ordinary text there: write "
            "conversations as messages, not as text that a template has rendered"
        )
    if report.train and not report.heldout:
        yield "no line is held out: there will be no held-out figures"
    if report.heldout and not report.train:
        yield "all lines are held out: there is nothing to train on"


def _table(first: str, *numbers: str) -> Table:
    from rich.table import Table

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
