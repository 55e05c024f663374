"""`fairlead k8s fetch-model`: a model of a hub on the run's volume."""

from __future__ import annotations

from typing import Annotated

import typer

from fairlead.cli.k8s_options import (
    Context,
    Kubeconfig,
    Namespace,
    Overlay,
    Registry,
    RequestSeconds,
    Run,
    Tag,
    Volume,
    WaitSeconds,
    connect,
    rendered,
    report,
    target_of,
)
from fairlead.cli.output import fail, with_examples

_POLL_SECONDS = 1.0


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        "fetch-model",
        help=with_examples(
            "Download a model of the Hugging Face hub to the volume once, by a Job, and wait until it is "
            "there. A complete folder is not downloaded again.",
            "fairlead k8s fetch-model Qwen/Qwen3-8B --overlay gpu --registry registry.example.com/team",
            "fairlead k8s fetch-model org/gated --to models/gated --token --overlay kind",
        ),
    )(fetch_model)


def fetch_model(  # noqa: PLR0913 - a flag each
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Id of the model, such as org/name.")],
    *,
    overlay: Overlay,
    to: Annotated[
        str, typer.Option("--to", help="Folder relative to /fairlead. Default: models/ and the model's name.")
    ] = "",
    revision: Annotated[str, typer.Option("--revision", help="Branch, tag or commit.")] = "main",
    token: Annotated[
        bool, typer.Option("--token", help="Use the token in the Secret fairlead-hub, for a gated model.")
    ] = False,
    registry: Registry = "",
    tag: Tag = None,
    namespace: Namespace = "fairlead",
    run: Run = "",
    volume: Volume = "",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_seconds: RequestSeconds = 30.0,
    timeout_seconds: WaitSeconds = 7_200.0,
) -> None:
    """Start the Job and wait for its end."""
    from fairlead.config import load
    from fairlead.k8s import fetch, waiting

    folder = to or f"models/{model.rpartition('/')[2]}"
    settings, target = target_of(
        load(),
        run=run,
        overlay=overlay,
        namespace=namespace,
        components=None,
        registry=registry,
        tag=tag,
        stage="sft",
        volume=volume,
        shared=None,
    )
    wanted = fetch.job(rendered(settings, target), model, revision=revision, folder=folder, has_token=token)
    cluster = connect(namespace, run, kubeconfig, context, request_seconds)
    cluster.check_namespace(create=False)
    fetch.start(cluster, wanted, timeout_seconds=timeout_seconds)
    outcome = waiting.wait_until_done(
        cluster,
        name=fetch.NAME_OF_JOB,
        timeout_seconds=timeout_seconds,
        poll_seconds=_POLL_SECONDS,
        report=report,
    )
    if outcome.code:
        fail(outcome.message, code=outcome.code)
    typer.echo(f"/fairlead/{folder} has {model}; set the path {folder!r}")
