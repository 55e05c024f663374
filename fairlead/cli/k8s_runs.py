"""`fairlead k8s run`: several runs in one namespace, each with its name as a prefix of its objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.k8s_options import (
    Components,
    Context,
    Kubeconfig,
    Namespace,
    Overlay,
    Registry,
    RequestSeconds,
    Shared,
    Stage,
    Tag,
    Volume,
    WaitSeconds,
    applied,
    connect,
    report,
    target_of,
)
from fairlead.cli.output import Overrides, fail, load_config, print_in_full, with_examples

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fairlead.k8s.runs import Run

app = typer.Typer(
    name="run",
    no_args_is_help=True,
    help="Several runs in one namespace, each with its name as a prefix of the names of its objects.",
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the run.")]


def register(root: typer.Typer) -> None:
    """Add the group of verbs."""
    root.add_typer(app)


@app.command(
    "submit",
    help=with_examples(
        "Start a new run under the name in its file, and do not wait. A name that is taken is refused.",
        "fairlead k8s run submit run.toml --overlay gpu --volume models -n team",
        "fairlead k8s run submit run.toml --overlay gpu --set name=warmer --set sampling.temperature=1.1",
    ),
)
def submit(  # noqa: PLR0913 - a flag each
    config: Annotated[Path, typer.Argument(metavar="RUN.TOML", help="The run's file.")],
    overrides: Overrides = None,
    *,
    overlay: Overlay,
    components: Components = None,
    registry: Registry = "",
    tag: Tag = None,
    stage: Stage = "ppo",
    namespace: Namespace = "fairlead",
    volume: Volume = "",
    shared: Shared = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_seconds: RequestSeconds = 30.0,
) -> None:
    """Reserve the name, and apply the objects."""
    from fairlead.errors import ClusterRefused
    from fairlead.k8s import runs
    from fairlead.k8s.deploy import deploy

    settings = load_config(config, None, overrides)
    name = settings.name
    settings, target = target_of(
        settings,
        run=name,
        overlay=overlay,
        namespace=namespace,
        components=components,
        registry=registry,
        tag=tag,
        stage=stage,
        volume=volume,
        shared=shared,
    )
    manifests, whole = applied(settings, target)
    cluster = connect(namespace, name, kubeconfig, context, request_seconds)
    cluster.check_namespace(create=False)
    runs.reserve(cluster, manifests)
    if not volume and (earlier := runs.left_by_an_earlier_run(cluster)):
        report(f"continues from the volume {earlier}, which an earlier run {name} has left")
    try:
        deploy(
            cluster,
            manifests,
            whole,
            volume=volume,
            force_conflicts=False,
            timeout_seconds=request_seconds,
            report=report,
        )
    except ClusterRefused:
        runs.release(cluster)
        raise
    where = f" -n {namespace}" if namespace != "fairlead" else ""
    typer.echo(f"submitted {name}; it is shown by: fairlead k8s status --run {name}{where}")


@app.command(
    "list",
    help=with_examples(
        "Show the runs of a namespace: state, stage, update and age, and why a run waits or has failed.",
        "fairlead k8s run list -n team",
    ),
)
def list_runs(
    namespace: Namespace = "fairlead",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_seconds: RequestSeconds = 30.0,
) -> None:
    """Print a table; the exit code is 0 in every state."""
    from rich.console import Console

    from fairlead.k8s.runs import runs

    cluster = connect(namespace, "", kubeconfig, context, request_seconds)
    cluster.check_namespace(create=False)
    found = list(runs(cluster))
    if found:
        print_in_full(Console(), _table(found))
    else:
        typer.echo(f"namespace {namespace} has no runs")


@app.command(
    "delete",
    help=with_examples(
        "Stop a run and delete its objects. Its volumes and passwords are kept, and a run of the same name "
        "continues from them.",
        "fairlead k8s run delete warmer -n team",
        "fairlead k8s run delete warmer -n team --volumes --yes",
    ),
)
def delete(
    name: Name,
    namespace: Namespace = "fairlead",
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Delete its volumes and passwords, too.")
    ] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Do not ask before volumes are deleted, or services that other runs use."),
    ] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_seconds: RequestSeconds = 30.0,
    timeout_seconds: WaitSeconds = 300.0,
) -> None:
    """Drain the processes of one run in order and delete its objects."""
    from fairlead.k8s import changes, runs

    cluster = connect(namespace, name, kubeconfig, context, request_seconds)
    cluster.check_namespace(create=False)
    runs.check_exists(cluster)
    users = runs.users_of(cluster)
    for user, services in users.items():
        report(f"run {user} uses {' and '.join(services)} of this run")
    if users and not yes:
        fail(f"{name} is in use by {', '.join(users)}: delete these first, or add --yes")
    if volumes and not yes:
        typer.confirm(f"Delete every checkpoint and report of {name} in namespace {namespace}?", abort=True)
    kept = changes.take_down(cluster, purge=volumes, timeout_seconds=timeout_seconds, report=report)
    typer.echo(f"deleted {name}; kept: {', '.join(kept)}" if kept else f"deleted {name}; nothing is kept")


def _table(found: list[Run]) -> RenderableType:
    """Return a table of the runs, and below it a line for each that waits or has failed."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from fairlead.cli.k8s_options import age

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "state", "stage", "update", "age"):
        table.add_column(column, justify="right" if column in ("update", "age") else "left", no_wrap=True)
    notes: list[str] = []
    for run in found:
        update = f"{run.update[0]}/{run.update[1]}" if run.update is not None else "–"
        name = run.name if run.has_prefix else f"{run.name} *"
        table.add_row(name, run.state, run.stage or "–", update, age(run.created))
        if run.reason:
            notes.append(f"{run.name}: {run.reason}")
    if not all(run.has_prefix for run in found):
        notes.append("* without a prefix: verbs without --run are about this one")
    return Group(table, "", *(Text(line) for line in notes)) if notes else table
