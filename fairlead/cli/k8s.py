"""`fairlead k8s`: a run in a Kubernetes cluster, from the same file as on one machine."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import (
    ConfigFile,
    ConfigOption,
    Overrides,
    fail,
    load_config,
    need,
    with_examples,
)

if TYPE_CHECKING:
    from fairlead.config import RunConfig
    from fairlead.k8s.cluster import Cluster
    from fairlead.k8s.manifests import Manifest
    from fairlead.k8s.processes import ProcessState

Namespace = Annotated[
    str, typer.Option("--namespace", "-n", help="Namespace of the run; one run per namespace.")
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig", metavar="FILE", help="Kubeconfig to use instead of $KUBECONFIG or ~/.kube/config."
    ),
]
Context = Annotated[
    str | None,
    typer.Option("--context", help="Context to use instead of the kubeconfig's current one."),
]
RequestSeconds = Annotated[
    float, typer.Option("--request-seconds", min=0.1, help="Deadline of one request to the cluster.")
]
WaitSeconds = Annotated[float, typer.Option("--timeout-seconds", min=0.1, help="How long to wait for pods.")]
Overlay = Annotated[str, typer.Option("--overlay", help="gpu, kind, or the folder of your own overlay.")]
Components = Annotated[
    list[str] | None,
    typer.Option(
        "--component", help="A folder of k8s/components, such as keda, or any other folder; repeatable."
    ),
]
Registry = Annotated[
    str, typer.Option("--registry", help="Registry and path of the images, without their names.")
]
Tag = Annotated[str | None, typer.Option("--tag", help="Tag of the images; by default this version.")]
Stage = Annotated[
    str, typer.Option("--stage", help="What to run: files, sft, reward-model, preference or ppo.")
]

_POLL_SECONDS = 1.0

app = typer.Typer(
    name="k8s",
    no_args_is_help=True,
    help="Run on a Kubernetes cluster what `fairlead ppo` runs on one machine (docs/kubernetes.md).",
)


def register(root: typer.Typer) -> None:
    """Add the group of verbs."""
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
    create_namespace: Annotated[
        bool, typer.Option("--create-namespace", help="Create the namespace if it does not exist.")
    ] = False,
    force_conflicts: Annotated[
        bool, typer.Option("--force-conflicts", help="Take over fields that other managers own.")
    ] = False,
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
    from fairlead.k8s import waiting
    from fairlead.k8s.changes import apply_all
    from fairlead.k8s.secret import ensure_secrets

    manifests = _rendered(
        load_config(config, config_option, overrides), overlay, components, registry, tag, stage, namespace
    )
    cluster = _cluster(namespace, kubeconfig, context, request_seconds)
    cluster.check_namespace(create=create_namespace)
    if ensure_secrets(cluster, manifests):
        _report("created the Secret redis with new passwords")
    apply_all(
        cluster, manifests, force_conflicts=force_conflicts, timeout_seconds=timeout_seconds, report=_report
    )
    _report(f"applied {len(manifests)} objects to namespace {namespace}")
    for pod in waiting.restart_crashed(cluster):
        _report(f"restarting {pod}")
    outcome = waiting.wait_until_ready(
        cluster, timeout_seconds=timeout_seconds, poll_seconds=_POLL_SECONDS, report=_report
    )
    if until_done and not outcome.code:
        _report(outcome.message)
        outcome = waiting.wait_until_done(cluster, poll_seconds=_POLL_SECONDS, report=_report)
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
) -> None:
    """Print the manifests as YAML."""
    import yaml

    manifests = _rendered(
        load_config(config, config_option, overrides), overlay, components, registry, tag, stage, namespace
    )
    typer.echo(yaml.safe_dump_all(manifests, sort_keys=False), nl=False)


@app.command(
    "status",
    help=with_examples(
        "Show every process of the run: how many pods are ready, and what the others wait for.",
        "fairlead k8s status -n fairlead",
    ),
)
def status(
    namespace: Namespace = "fairlead",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_seconds: RequestSeconds = 30.0,
) -> None:
    """Print a table; the exit code is 0 in every state."""
    from rich.console import Console

    from fairlead.k8s.processes import process_states

    cluster = _cluster(namespace, kubeconfig, context, request_seconds)
    cluster.check_namespace(create=False)
    states = process_states(cluster)
    if states:
        Console().print(_table(states))
    else:
        typer.echo(f"namespace {namespace} has no run")


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
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_seconds: RequestSeconds = 30.0,
) -> None:
    """Set the replicas; do not wait."""
    from fairlead.k8s import changes

    numbers: dict[str, int] = {}
    for argument in wanted:
        name, _, number = argument.partition("=")
        if not name or not number.isdigit():
            fail(f"scale: got {argument!r}, allowed: PROCESS=NUMBER, such as rollout-worker=8")
        numbers[name] = int(number)
    changes.scale(_cluster(namespace, kubeconfig, context, request_seconds), numbers)
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
    purge: Annotated[bool, typer.Option("--purge", help="Delete volumes and passwords too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a purge.")] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_seconds: RequestSeconds = 30.0,
    timeout_seconds: WaitSeconds = 300.0,
) -> None:
    """Drain the processes in order and delete the objects."""
    from fairlead.k8s import changes

    if purge and not yes:
        typer.confirm(
            f"Delete every checkpoint, report, queue and judgment in namespace {namespace}?", abort=True
        )
    cluster = _cluster(namespace, kubeconfig, context, request_seconds)
    kept = changes.take_down(cluster, purge=purge, timeout_seconds=timeout_seconds, report=_report)
    typer.echo(f"down; kept: {', '.join(kept)}" if kept else "down; nothing is kept")


def _rendered(
    config: RunConfig,
    overlay: str,
    components: list[str] | None,
    registry: str,
    tag: str | None,
    stage: str,
    namespace: str,
) -> list[Manifest]:
    need("k8s")
    from fairlead import __version__
    from fairlead.k8s.manifests import Target, render

    if config.queue.redis_url or config.queue.redis_password is not None:
        _report("ignored: queue.redis_url and queue.redis_password, because the cluster has its own queue")
    target = Target(
        overlay=overlay,
        namespace=namespace,
        components=components or (),
        registry=registry,
        tag=tag or __version__,
        stage=stage,
    )
    return render(config, target)


def _cluster(namespace: str, kubeconfig: Path | None, context: str | None, request_seconds: float) -> Cluster:
    need("k8s")
    from fairlead.k8s.cluster import Cluster

    return Cluster.connect(
        namespace,
        kubeconfig=str(kubeconfig) if kubeconfig else None,
        context=context,
        timeout_seconds=request_seconds,
    )


def _table(states: list[ProcessState]) -> object:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("process", "ready", "restarts", "age", "doing"):
        table.add_column(column, justify="right" if column in ("restarts", "age") else "left")
    for state in states:
        ready = "done" if state.done else "failed" if state.failed else f"{state.ready}/{state.wanted}"
        doing = state.failed or state.doing
        if state.end is not None and not state.done and str(state.end.code) not in doing:
            last = f"last exit code {state.end.code} ({state.end.message})"
            doing = f"{doing}; {last}" if doing else last
        table.add_row(state.name, ready, str(state.restarts), _age(state.started), doing)
    return table


def _age(started: datetime | None) -> str:
    if started is None:
        return "–"
    seconds = max(0, int((datetime.now(UTC) - started).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _report(line: str) -> None:
    typer.echo(line, err=True)
