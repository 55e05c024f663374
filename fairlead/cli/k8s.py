"""`fairlead k8s`: a run in a Kubernetes cluster, from the same file as on one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli import k8s_look, k8s_models, k8s_runs
from fairlead.cli.k8s_options import (
    Components,
    Context,
    ForceConflicts,
    Kubeconfig,
    Namespace,
    Overlay,
    Registry,
    RequestSeconds,
    Run,
    Shared,
    Stage,
    Tag,
    Volume,
    WaitSeconds,
    age,
    applied,
    connect,
    other_runs,
    rendered,
    report,
    target_of,
)
from fairlead.cli.output import (
    ConfigFile,
    ConfigOption,
    Overrides,
    fail,
    load_config,
    print_in_full,
    with_examples,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fairlead.k8s.processes import ProcessState

_POLL_SECONDS = 1.0

app = typer.Typer(
    name="k8s",
    no_args_is_help=True,
    help="Run on a Kubernetes cluster what `fairlead ppo` runs on one machine (docs/kubernetes.md).",
)


def register(root: typer.Typer) -> None:
    """Add the group of verbs."""
    k8s_look.register(app)
    k8s_models.register(app)
    k8s_runs.register(app)
    root.add_typer(app)


@app.command(
    "up",
    help=with_examples(
        "Start a run, or update it to new settings, and wait until it is ready. A run that was stopped "
        "continues.",
        "fairlead k8s up run.toml --overlay kind --create-namespace",
        "fairlead k8s up run.toml --overlay gpu --component keda --registry registry.example.com/team",
        "fairlead k8s up run.toml --overlay kind --stage sft --until-done",
    ),
)
def up(  # noqa: PLR0913 - a flag each
    config: ConfigFile = None,
    config_option: ConfigOption = None,
    overrides: Overrides = None,
    *,
    overlay: Overlay,
    components: Components = None,
    registry: Registry = "",
    tag: Tag = None,
    stage: Stage = "ppo",
    namespace: Namespace = "fairlead",
    run: Run = "",
    volume: Volume = "",
    shared: Shared = None,
    create_namespace: Annotated[
        bool, typer.Option("--create-namespace", help="Create the namespace if it does not exist.")
    ] = False,
    force_conflicts: ForceConflicts = False,
    until_done: Annotated[
        bool,
        typer.Option("--until-done", help="Wait until the trainer ends, and exit with its exit code."),
    ] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_seconds: RequestSeconds = 30.0,
    timeout_seconds: WaitSeconds = 1_800.0,
) -> None:
    """Render the manifests, apply them and wait."""
    from fairlead.k8s import prune, waiting
    from fairlead.k8s.deploy import deploy

    settings, target = target_of(
        load_config(config, config_option, overrides),
        run=run,
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
    cluster = connect(namespace, run, kubeconfig, context, request_seconds)
    cluster.check_namespace(create=create_namespace)
    deploy(
        cluster,
        manifests,
        whole,
        volume=volume,
        force_conflicts=force_conflicts,
        timeout_seconds=timeout_seconds,
        report=report,
    )
    outcome = waiting.wait_until_ready(
        cluster, timeout_seconds=timeout_seconds, poll_seconds=_POLL_SECONDS, report=report
    )
    if not outcome.code:
        prune.delete_old_settings(cluster, whole)
    if until_done and not outcome.code:
        report(outcome.message)
        outcome = waiting.wait_until_done(cluster, poll_seconds=_POLL_SECONDS, report=report)
    if outcome.code:
        fail(outcome.message, code=outcome.code)
    typer.echo(outcome.message)


@app.command(
    "render",
    help=with_examples(
        "Write the manifests that `up` would apply, without the Secret redis. Needs no cluster.",
        "fairlead k8s render run.toml --overlay gpu --registry registry.example.com/team > run.yaml",
        "fairlead k8s render run.toml --overlay kind | kubectl diff -f -",
    ),
)
def render_manifests(  # noqa: PLR0913 - a flag each
    config: ConfigFile = None,
    config_option: ConfigOption = None,
    overrides: Overrides = None,
    *,
    overlay: Overlay,
    components: Components = None,
    registry: Registry = "",
    tag: Tag = None,
    stage: Stage = "ppo",
    namespace: Namespace = "fairlead",
    run: Run = "",
    volume: Volume = "",
    shared: Shared = None,
) -> None:
    """Print the manifests as YAML."""
    from fairlead.k8s.manifests import as_yaml, of_stage

    settings, target = target_of(
        load_config(config, config_option, overrides),
        run=run,
        overlay=overlay,
        namespace=namespace,
        components=components,
        registry=registry,
        tag=tag,
        stage=stage,
        volume=volume,
        shared=shared,
    )
    manifests = of_stage(rendered(settings, target), stage)
    typer.echo(as_yaml(manifests), nl=False)


@app.command(
    "diff",
    help=with_examples(
        "Show what `up` with the same arguments would restart, delete, change and create. Changes nothing.",
        "fairlead k8s diff run.toml --overlay gpu --set ppo.updates=200",
    ),
)
def diff(  # noqa: PLR0913 - a flag each
    config: ConfigFile = None,
    config_option: ConfigOption = None,
    overrides: Overrides = None,
    *,
    overlay: Overlay,
    components: Components = None,
    registry: Registry = "",
    tag: Tag = None,
    stage: Stage = "ppo",
    namespace: Namespace = "fairlead",
    run: Run = "",
    volume: Volume = "",
    shared: Shared = None,
    force_conflicts: ForceConflicts = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_seconds: RequestSeconds = 30.0,
) -> None:
    """Print a line for each change; the exit code is 0 with and without changes."""
    from fairlead.k8s.plan import plan

    settings, target = target_of(
        load_config(config, config_option, overrides),
        run=run,
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
    cluster = connect(namespace, run, kubeconfig, context, request_seconds)
    cluster.check_namespace(create=False)
    lines = list(plan(cluster, manifests, whole, force_conflicts=force_conflicts).lines())
    typer.echo("\n".join(lines) if lines else "no changes")


@app.command(
    "status",
    help=with_examples(
        "Show every process of the run: how many pods are ready, and what the others wait for.",
        "fairlead k8s status -n fairlead",
    ),
)
def status(
    namespace: Namespace = "fairlead",
    run: Run = "",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_seconds: RequestSeconds = 30.0,
) -> None:
    """Print a table; the exit code is 0 in every state."""
    from rich.console import Console

    from fairlead.k8s.processes import process_states

    cluster = connect(namespace, run, kubeconfig, context, request_seconds)
    cluster.check_namespace(create=False)
    states = process_states(cluster)
    if states:
        print_in_full(Console(), _table(states))
    else:
        typer.echo(f"namespace {namespace} has no run{f' {run}' if run else ''}{other_runs(cluster)}")


@app.command(
    "scale",
    help=with_examples(
        "Set the number of pods of a process. The queue always has one, the trainer `ranks.nodes`.",
        "fairlead k8s scale rollout-worker=8 reward=2",
    ),
)
def scale(
    wanted: Annotated[
        list[str], typer.Argument(metavar="PROCESS=NUMBER...", help="Processes and their numbers of pods.")
    ],
    namespace: Namespace = "fairlead",
    run: Run = "",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_seconds: RequestSeconds = 30.0,
) -> None:
    """Set the replicas; do not wait."""
    from fairlead.k8s import changes

    numbers: dict[str, int] = {}
    for argument in wanted:
        name, _, number = argument.partition("=")
        if not name or not (number.isascii() and number.isdigit()):
            fail(f"scale: got {argument!r}, allowed: PROCESS=NUMBER, such as rollout-worker=8")
        numbers[name] = int(number)
    changes.scale(connect(namespace, run, kubeconfig, context, request_seconds), numbers)
    typer.echo(f"scaled: {', '.join(f'{name} to {number}' for name, number in numbers.items())}")


@app.command(
    "down",
    help=with_examples(
        "Stop the run and delete its objects. Volumes and passwords are kept, and `up` continues the run.",
        "fairlead k8s down",
        "fairlead k8s down --purge --yes",
    ),
)
def down(
    namespace: Namespace = "fairlead",
    run: Run = "",
    purge: Annotated[bool, typer.Option("--purge", help="Delete volumes and passwords too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a purge.")] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_seconds: RequestSeconds = 30.0,
    timeout_seconds: WaitSeconds = 300.0,
) -> None:
    """Drain the processes in order and delete the objects."""
    from fairlead.k8s import changes
    from fairlead.k8s.processes import process_states

    cluster = connect(namespace, run, kubeconfig, context, request_seconds)
    cluster.check_namespace(create=False)
    if purge and not yes:
        typer.confirm(
            f"Delete every checkpoint, report, queue and judgment{' of ' + run if run else ''} in namespace "
            f"{namespace}?",
            abort=True,
        )
    others = "" if process_states(cluster) else other_runs(cluster)
    kept = changes.take_down(cluster, purge=purge, timeout_seconds=timeout_seconds, report=report)
    typer.echo(f"down; kept: {', '.join(kept)}{others}" if kept else f"down; nothing is kept{others}")


def _table(states: list[ProcessState]) -> RenderableType:
    """Return a table of the processes, and below it a line for each reason why pods are not ready."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from fairlead.k8s.waiting import grouped

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("process", "ready", "restarts", "age"):
        table.add_column(column, justify="right" if column in ("restarts", "age") else "left", no_wrap=True)
    notes: dict[str, str] = {}
    for state in states:
        ready = "done" if state.done else "failed" if state.failed else f"{state.ready}/{state.wanted}"
        table.add_row(state.name, ready, str(state.restarts), age(state.started))
        if note := _note(state):
            notes[state.name] = note
    if not notes:
        return table
    return Group(table, "", *(Text(line) for line in grouped(notes)))


def _note(state: ProcessState) -> str:
    doing = state.failed or ("" if state.done else state.doing)
    if state.end is not None and not state.done and str(state.end.code) not in doing:
        last = f"last exit code {state.end.code} ({state.end.message})"
        doing = f"{doing}; {last}" if doing else last
    if state.replaced is not None and not state.done:
        last = f"its pod was replaced {age(state.replaced)} ago"
        doing = f"{doing}; {last}" if doing else last
    return doing
