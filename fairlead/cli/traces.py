"""`fairlead traces`: receives traces on one machine, and prints the trace of a task."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from fairlead.cli.output import fail, say, with_examples

_COLLECT = with_examples(
    "Receive traces (OTLP over HTTP) and append them to a file, until Ctrl-C.\n\n"
    "For a look at traces without Jaeger, Tempo or a collector: `observe.otlp_endpoint` of a run names its "
    "address. Needs the extra `otel`.",
    "fairlead traces collect traces.jsonl",
    "fairlead ppo run.toml --set observe.otlp_endpoint=http://127.0.0.1:4318",
)
_SHOW = with_examples(
    "Print a trace as a tree with times: that of one task, by default the first one that was trained.\n\n"
    "Reads a file of `fairlead traces collect`, or of the file exporter of an OpenTelemetry collector.",
    "fairlead traces show traces.jsonl",
    "fairlead traces show traces.jsonl --task 17",
    "fairlead traces show traces.jsonl --list",
)
_File = Annotated[Path, typer.Argument(help="File of traces, JSON lines.", dir_okay=False)]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    traces = typer.Typer(no_args_is_help=True, help="Receive traces on one machine, and print them.")
    traces.command("collect", help=_COLLECT)(collect)
    traces.command("show", help=_SHOW)(show)
    app.add_typer(traces, name="traces")


def collect(
    file: _File,
    listen: Annotated[
        str, typer.Option("--listen", help="Address to listen on, HOST:PORT; port 0 is any free one.")
    ] = "127.0.0.1:4318",
) -> None:
    """Receive traces until Ctrl-C."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        fail(f"--listen: got {listen!r}, allowed: HOST:PORT")
    try:
        from fairlead.tracing.sink import receiving
    except ModuleNotFoundError:
        fail("traces collect needs OpenTelemetry: pip install 'fairlead-rlhf[otel]'")
    with receiving(file, host=host, port=int(port)) as address:
        say(f"traces sent to {address} are appended to {file}; Ctrl-C ends", bold=True)
        try:
            while True:
                time.sleep(3_600)
        except KeyboardInterrupt:
            return


def show(
    file: _File,
    task: Annotated[int | None, typer.Option("--task", min=0, help="The task.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Only tasks of the run of this name.")] = None,
    trace: Annotated[str | None, typer.Option("--trace", help="The trace, by its id.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the traces of tasks instead.")] = False,
) -> None:
    """Print one trace, or the list of them."""
    from fairlead.tracing import picture, stored

    spans = stored.read(file)
    found = stored.traces_of_tasks(spans, run=run, task=task)
    if list_all:
        for each in found:
            mine = stored.of_trace(spans, each)
            tasks = next(span for span in mine if "fairlead.task" in span.attributes)
            seconds = max(span.ended for span in mine) - min(span.begun for span in mine)
            names = dict.fromkeys(span.name for span in mine)
            say(
                f"{each}  run {tasks.run}, task {tasks.attributes['fairlead.task']}: "
                f"{seconds:.3f} s, {', '.join(names)}"
            )
        return
    if trace is not None:
        chosen = [trace.lower()] if stored.of_trace(spans, trace.lower()) else []
    elif task is not None:
        chosen = found
    else:
        trained = (each for each in found if any(s.name == "train" for s in stored.of_trace(spans, each)))
        chosen = [next(trained, found[0])] if found else []
    if not chosen:
        what = f"trace {trace}" if trace else f"task {task}" if task is not None else "a task"
        fail(
            f"{file}: has no trace of {what}; with observe.trace_one_in above 1 most tasks have none "
            "(fairlead traces show FILE --list)"
        )
    columns = shutil.get_terminal_size((100, 24)).columns
    for number, each in enumerate(chosen):
        if number:
            say("")
        for line in picture.draw(spans, each, columns=columns):
            typer.echo(line)
