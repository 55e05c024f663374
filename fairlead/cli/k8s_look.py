"""`fairlead k8s logs` and `doctor`: what pods wrote, and what a cluster lacks."""

from __future__ import annotations

from typing import Annotated

import typer

from fairlead.cli.k8s_options import (
    Context,
    Kubeconfig,
    Namespace,
    RequestSeconds,
    Run,
    connect,
    other_runs,
    report,
)
from fairlead.cli.output import fail, with_examples

_POLL_SECONDS = 2.0


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(
        "logs",
        help=with_examples(
            "Write the last lines of the logs of a process, of all its pods, oldest pod first.",
            "fairlead k8s logs trainer",
            "fairlead k8s logs rollout-worker --follow",
            "fairlead k8s logs policy --previous --lines 200",
        ),
    )(logs)
    app.command(
        "doctor",
        help=with_examples(
            "Show what the cluster lacks for a run: rights, a storage class, GPUs, a default that a quota "
            "demands, extensions. Changes nothing; the exit code is 2 if something is missing that every run "
            "needs.",
            "fairlead k8s doctor -n fairlead",
        ),
    )(doctor)


def logs(  # noqa: PLR0913 - a flag each
    process: Annotated[
        str, typer.Argument(metavar="PROCESS", help="Such as trainer, policy or rollout-worker.")
    ],
    *,
    lines: Annotated[int, typer.Option("--lines", min=1, help="Lines of each pod.")] = 50,
    previous: Annotated[
        bool, typer.Option("--previous", help="Of the containers before their last restart.")
    ] = False,
    following: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Continue with new lines, also of new pods, until the process ends."
        ),
    ] = False,
    namespace: Namespace = "fairlead",
    run: Run = "",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_seconds: RequestSeconds = 30.0,
) -> None:
    """Print the logs, each line with its pod if there are several pods."""
    cluster = connect(namespace, run, kubeconfig, context, request_seconds)
    from fairlead.errors import ClusterRefused, ConfigError
    from fairlead.k8s.follow import container_of, follow
    from fairlead.k8s.labels import NAME

    if following and previous:
        fail("--follow: got it with --previous, allowed: one of them")
    pods = cluster.list("v1", "Pod")
    pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    mine = [one for one in pods if (one["metadata"].get("labels") or {}).get(NAME) == process]
    if not mine:
        known = sorted({str((one["metadata"].get("labels") or {}).get(NAME)) for one in pods})
        allowed = (
            f"one of {', '.join(known)}"
            if known
            else f"a process of a run; this namespace has no pods{other_runs(cluster)}"
        )
        raise ConfigError("process", got=process, allowed=allowed)
    if following:
        follow(
            cluster,
            process,
            lines=lines,
            poll_seconds=_POLL_SECONDS,
            write=lambda pod, line: typer.echo(f"{pod}: {line}"),
            report=report,
        )
        return
    for pod in mine:
        name = pod["metadata"]["name"]
        prefix = f"{name}: " if len(mine) > 1 else ""
        try:
            text = cluster.log(name, lines=lines, previous=previous, container=container_of(pod, process))
        except ClusterRefused as error:  # a container that has not started, or has not restarted
            typer.echo(f"{name}: {error}", err=True)
            continue
        for line in text.splitlines():
            typer.echo(f"{prefix}{line}")


def doctor(
    namespace: Namespace = "fairlead",
    run: Run = "",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_seconds: RequestSeconds = 30.0,
) -> None:
    """Print a line for each thing that was looked at."""
    cluster = connect(namespace, run, kubeconfig, context, request_seconds)
    from fairlead.k8s.doctor import examine

    missing: list[str] = []
    for finding in examine(cluster):
        typer.echo(f"{finding.state:<8}  {finding.what}: {finding.detail}")
        if finding.state == "missing" and finding.what not in missing:
            missing.append(finding.what)
    if missing:
        fail(f"the cluster lacks what every run needs: {', '.join(missing)}", code=2)
