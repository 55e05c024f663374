"""`fairlead audit`: the history of every task of a run, and whether each counted exactly once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import (
    ConfigOption,
    Json,
    RunPath,
    fail,
    print_in_full,
    run_folder,
    say,
    with_examples,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fairlead.audit import Report
    from fairlead.audit.history import History
    from fairlead.config import RunConfig, RunFolder
    from fairlead.config.infrastructure import QueueSection
    from fairlead.transports.rollouts.base import QueueSnapshot

_AUDIT = with_examples(
    "Check that every prompt of a PPO run counted exactly once in the lineage of its weights: trained on, or "
    "dead with a reason.\n\n"
    "Rebuilds the history of every task from journals, checkpoints, weight versions and Redis, and trusts no "
    "counter. Works on a run that is running, has ended or has crashed, and changes nothing. The exit code "
    "is 1 if a task was lost or counted twice; these tasks are named.",
    "fairlead audit runs/quickstart",
    "fairlead audit runs/quickstart --task 17",
    "fairlead audit runs/quickstart --redis-url redis://127.0.0.1:6379 --json",
)
_EMBEDDED = "the run's embedded Valkey is not running"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("audit", help=_AUDIT)(audit)


def audit(
    run: RunPath,
    task: Annotated[int | None, typer.Option("--task", min=0, help="Show the history of one task.")] = None,
    config: ConfigOption = None,
    redis_url: Annotated[
        str | None,
        typer.Option("--redis-url", help="URL of the queue. Default: the URL in the run's settings."),
    ] = None,
    skip_tensors: Annotated[
        bool, typer.Option("--skip-tensors", help="Do not verify the checksums of the checkpoints' tensors.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print what was found; the exit code is 1 if a rule is broken."""
    from rich.console import Console

    from fairlead.audit import audit as examine
    from fairlead.audit.snapshot import TrainingSettings
    from fairlead.config import RunFolder, load

    folder = RunFolder(run_folder(run))
    file = config or (folder.config if folder.config.exists() else None)
    settings = load(file) if file else None
    if not folder.ledger.exists() and not folder.checkpoints.exists():
        fail(f"run: got {str(run)!r}, allowed: the folder of a run that has started PPO")
    report, history = examine(
        folder,
        weights=settings.weights_path if settings and settings.weights.path else None,
        settings=TrainingSettings(
            settings.ppo.batch_size,
            settings.ppo.max_staleness,
            settings.ppo.num_samples,
            settings.ppo.extra_tasks,
        )
        if settings
        else None,
        read_queue=_queue_reader(folder, settings, redis_url),
        tensors=not skip_tensors,
    )
    if task is not None:
        _show_task(history, task, _traces(history, task, settings), as_json=as_json)
    elif as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        show(Console(highlight=False), report)
    if not report.is_clean:
        raise typer.Exit(1)


def show(console: Console, report: Report) -> None:
    """Print the report as text."""
    from rich.table import Table
    from rich.text import Text

    state = "ended" if report.ended else "not ended"
    where = f"checkpoint {report.checkpoint}" if report.checkpoint else "no checkpoint yet"
    console.print(Text.assemble((report.run, "bold"), f" · PPO has {state} · {where}"))
    figures = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for name, value in _figures(report):
        figures.add_row(Text(name, "dim"), Text(value))
    print_in_full(console, figures)
    if report.incarnations:
        console.print()
        print_in_full(console, _incarnations(report))
    for finding in report.findings:
        style = "red" if finding.is_error else "yellow"
        print_in_full(console, Text.assemble((finding.kind.replace("_", " "), style), f": {finding.words}"))
    if report.is_clean:
        counts = f"{report.trained} trained and {report.dead} dead{_without_signal(report)}, each once"
        console.print(Text(f"clean: {counts}; none lost, none duplicated", "green"))
    else:
        named = [
            f"{len(tasks)} {name}"
            for name, tasks in (("lost", report.lost), ("duplicated", report.duplicated))
            if tasks
        ]
        console.print(Text(f"not clean: {', '.join(named) or 'a rule is broken'}", "red"))


def _figures(report: Report) -> list[tuple[str, str]]:
    unfinished = "abandoned with the run" if report.given_up else "open"
    figures = [
        (
            "tasks sent",
            f"{report.tasks}: {report.trained} trained, {report.dead} dead{_without_signal(report)}, "
            f"{report.open} {unfinished}",
        ),
        ("sent again", str(report.resent)),
        ("deliveries", f"{report.deliveries} of counted tasks"),
        ("void", f"{report.void} outcomes of abandoned lineages"),
        ("dropped", _counts(report.discarded)),
        ("dead letters", _counts(report.dead_reasons)),
        ("staleness", f"{report.max_staleness_seen} updates at most"),
    ]
    queue = report.queue
    if queue is None:
        return [*figures, ("queue", f"not checked: {report.queue_error}")]
    held = f"{queue['waiting']} waiting, {queue['in_flight']} in flight, {queue['outcomes']} outcomes"
    return [*figures, ("queue", f"{held} ({queue['outcome_bytes']:,} bytes)")]


def _without_signal(report: Report) -> str:
    return f", {report.no_signal} without signal" if report.no_signal else ""


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "none"


def _incarnations(report: Report) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("incarnation", "from update", "trained", "dead", "void", "dropped"):
        table.add_column(name, justify="right")
    for one in report.incarnations:
        began = "never" if one.resumed_from is None else str(one.resumed_from)
        table.add_row(
            str(one.number), began, str(one.trained), str(one.dead), str(one.void), str(one.discarded)
        )
    return table


def _traces(history: History, task: int, settings: RunConfig | None) -> dict[str, str]:
    """Return the trace of each sending that an outcome closed, if the run records one."""
    from fairlead.tracing.context import of_task

    if settings is None or not settings.observe.otlp_endpoint:
        return {}
    one_in = settings.observe.trace_one_in
    sendings = sorted({line.sending for line in history.snapshot.outcomes if line.task == task})
    found = {sending: of_task(settings.name, task, sending, one_in=one_in) for sending in sendings}
    return {
        f"{incarnation}.{number}": f"{context.trace_id:032x}"
        for (incarnation, number), context in found.items()
        if context.is_sampled
    }


def _show_task(history: History, task: int, traces: dict[str, str], *, as_json: bool) -> None:
    events = history.of_task(task)
    if as_json:
        life = [{"time": event.time or None, "what": event.text} for event in events]
        typer.echo(json.dumps({"task": task, "life": life, "traces": traces}, indent=2))
        return
    say(f"task {task}", bold=True)
    for event in events:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time)) if event.time else " " * 19
        typer.echo(f"{at}  {event.text}")
    for sending, trace in traces.items():
        typer.echo(f"{' ' * 19}  trace of sending {sending}: {trace}")


def _queue_reader(
    folder: RunFolder, settings: RunConfig | None, redis_url: str | None
) -> Callable[[], QueueSnapshot] | None:
    """Return a function that reads the run's queue; None if its address is not known."""
    from fairlead.errors import QueueUnavailable
    from fairlead.local.valkey import last_url
    from fairlead.transports.rollouts.redis_snapshot import take_snapshot

    if settings is None and redis_url is None:
        return None
    section = _section(settings)
    url = redis_url or section.redis_url or last_url(folder.redis)
    name = settings.name if settings else folder.root.resolve().name

    def read() -> QueueSnapshot:
        if not url:
            raise QueueUnavailable(_EMBEDDED)
        return take_snapshot(section.model_copy(update={"redis_url": url}), run=name)

    return read


def _section(settings: RunConfig | None) -> QueueSection:
    from fairlead.config.infrastructure import QueueSection

    return settings.queue if settings else QueueSection()
