"""What the verbs of `fairlead k8s` share: flags, the manifests of a run and the connection to the cluster."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import fail, need

if TYPE_CHECKING:
    from fairlead.config import RunConfig
    from fairlead.k8s.cluster import Cluster
    from fairlead.k8s.manifests import Manifest, Target

Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Namespace of the run.")]
Run = Annotated[
    str,
    typer.Option(
        "--run",
        metavar="NAME",
        help="Name of the run among several in the namespace, and prefix of the names of its objects.",
    ),
]
Volume = Annotated[
    str,
    typer.Option(
        "--volume",
        metavar="CLAIM",
        help="An existing PersistentVolumeClaim for the files of the run.",
    ),
]
Shared = Annotated[
    list[str] | None,
    typer.Option(
        "--shared",
        metavar="SERVICE=HOST:PORT",
        help="Use the reward or the reference service of another run, and deploy none; repeatable.",
    ),
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

ForceConflicts = Annotated[
    bool, typer.Option("--force-conflicts", help="Take over fields that other managers own.")
]


def target_of(  # noqa: PLR0913 - a flag each
    config: RunConfig,
    *,
    run: str,
    overlay: str,
    namespace: str,
    components: list[str] | None,
    registry: str,
    tag: str | None,
    stage: str,
    volume: str,
    shared: list[str] | None,
) -> tuple[RunConfig, Target]:
    """Return the run, with the name that `--run` gives it, and where it is deployed."""
    need("k8s")
    from fairlead import __version__
    from fairlead.k8s.manifests import Target
    from fairlead.k8s.prefix import check_run_name

    addresses: dict[str, str] = {}
    for argument in shared or ():
        name, separator, address = argument.partition("=")
        if not separator:
            fail(f"shared: got {argument!r}, allowed: SERVICE=HOST:PORT, such as reward=first-reward:5002")
        addresses[name] = address
    if run:
        check_run_name(run)
        config = config.model_copy(update={"name": run})
    target = Target(
        overlay=overlay,
        namespace=namespace,
        prefix=bool(run),
        components=components or (),
        registry=registry,
        tag=tag or __version__,
        stage=stage,
        volume=volume,
        shared=addresses,
    )
    return config, target


def rendered(config: RunConfig, target: Target) -> list[Manifest]:
    """Return the objects of the whole run."""
    need("k8s")
    from fairlead.k8s.manifests import has_queue, render_run

    objects = render_run(config, target)
    if has_queue(objects) and (config.queue.redis_url or config.queue.redis_password is not None):
        report(
            "ignored: queue.redis_url and queue.redis_password, because the cluster has its own queue; for "
            "another use the component external-redis"
        )
    elif config.queue.redis_password is not None:
        report("ignored: queue.redis_password, because pods have that of the Secret fairlead-redis")
    return objects


def applied(config: RunConfig, target: Target) -> tuple[list[Manifest], list[Manifest]]:
    """Return the objects that `up` applies, and those of the whole run, which it does not delete."""
    from fairlead.k8s.manifests import of_stage

    whole = rendered(config, target)
    # `check_namespace` creates the namespace, for accounts that may.
    return [one for one in of_stage(whole, target.stage) if one["kind"] != "Namespace"], whole


def connect(
    namespace: str, run: str, kubeconfig: Path | None, context: str | None, request_seconds: float
) -> Cluster:
    """Return the connection to a run in a cluster; sends no request."""
    need("k8s")
    from fairlead.k8s.cluster import Cluster
    from fairlead.k8s.names import check_namespace_name
    from fairlead.k8s.prefix import check_run_name

    check_namespace_name(namespace)
    if run:
        check_run_name(run)
    return Cluster.connect(
        namespace,
        run=run,
        kubeconfig=str(kubeconfig) if kubeconfig else None,
        context=context,
        timeout_seconds=request_seconds,
    )


def other_runs(cluster: Cluster) -> str:
    """Return which other runs the namespace has, for a message; empty if it has none."""
    from fairlead.k8s.runs import names

    found = [name for name in names(cluster) if name != cluster.run]
    return f"; runs with a prefix: {', '.join(found)} (name one with --run)" if found else ""


def report(line: str) -> None:
    """Write a line about progress."""
    typer.echo(line, err=True)


def age(started: datetime | None) -> str:
    """Return how long ago something was, in its largest unit."""
    if started is None:
        return "–"
    seconds = max(0, int((datetime.now(UTC) - started).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
