"""What the verbs of `fairlead k8s` share: flags, the manifests of a run and the connection to the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import need

if TYPE_CHECKING:
    from fairlead.config import RunConfig
    from fairlead.k8s.cluster import Cluster
    from fairlead.k8s.manifests import Manifest

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

ForceConflicts = Annotated[
    bool, typer.Option("--force-conflicts", help="Take over fields that other managers own.")
]


def rendered(
    config: RunConfig,
    overlay: str,
    components: list[str] | None,
    registry: str,
    tag: str | None,
    stage: str,
    namespace: str,
) -> list[Manifest]:
    """Return the objects of the whole run."""
    need("k8s")
    from fairlead import __version__
    from fairlead.k8s.manifests import Target, has_queue, render_run

    target = Target(
        overlay=overlay,
        namespace=namespace,
        components=components or (),
        registry=registry,
        tag=tag or __version__,
        stage=stage,
    )
    objects = render_run(config, target)
    if has_queue(objects) and (config.queue.redis_url or config.queue.redis_password is not None):
        report(
            "ignored: queue.redis_url and queue.redis_password, because the cluster has its own queue; for "
            "another use the component external-redis"
        )
    elif config.queue.redis_password is not None:
        report("ignored: queue.redis_password, because pods have that of the Secret fairlead-redis")
    return objects


def applied(
    config: RunConfig,
    overlay: str,
    components: list[str] | None,
    registry: str,
    tag: str | None,
    stage: str,
    namespace: str,
) -> tuple[list[Manifest], list[Manifest]]:
    """Return the objects that `up` applies, and those of the whole run, which it does not delete."""
    from fairlead.k8s.manifests import of_stage

    whole = rendered(config, overlay, components, registry, tag, stage, namespace)
    # `check_namespace` creates the namespace, for accounts that may.
    return [one for one in of_stage(whole, stage) if one["kind"] != "Namespace"], whole


def connect(namespace: str, kubeconfig: Path | None, context: str | None, request_seconds: float) -> Cluster:
    """Return the connection to a cluster; sends no request."""
    need("k8s")
    from fairlead.k8s.cluster import Cluster

    return Cluster.connect(
        namespace,
        kubeconfig=str(kubeconfig) if kubeconfig else None,
        context=context,
        timeout_seconds=request_seconds,
    )


def report(line: str) -> None:
    """Write a line about progress."""
    typer.echo(line, err=True)
