"""`fairlead reload`: replace the model of a running reward service, for all or a share of the traffic."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.output import Addresses, Json, TimeoutSeconds, connection, fail, say, with_examples

if TYPE_CHECKING:
    from fairlead.clients import RewardAdminClient
    from fairlead.types import ServedReward

_RELOAD = with_examples(
    "Replace the model of a running reward service without a failed request.\n\n"
    "The service loads the new model next to the current one, tests it and swaps; requests in flight finish "
    "with the old model. With --canary the new model scores a share of the traffic until it is promoted or "
    "abandoned. Without a model, the verb shows what is served. Several replicas are changed one after the "
    "other. The service requires an API key with the scope admin; see reward.allow_reload.",
    "fairlead reload runs/second/reward_model --address localhost:5002",
    "fairlead reload models/v2 --canary 0.1 --address a:5002 --address b:5002",
    "fairlead reload --share 0.5 --address a:5002 --address b:5002",
    "fairlead reload --promote --address a:5002 --address b:5002",
    "fairlead reload --abandon --address localhost:5002",
    "fairlead reload --address localhost:5002",
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("reload", help=_RELOAD)(reload)


def reload(
    address: Addresses,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Folder or hub id on the service's machine.")
    ] = None,
    canary: Annotated[
        float | None,
        typer.Option("--canary", metavar="SHARE", help="Share of the traffic that MODEL scores, 0 to 1."),
    ] = None,
    share: Annotated[
        float | None, typer.Option("--share", metavar="SHARE", help="New share for the current canary.")
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Let the canary score all traffic.")] = False,
    abandon: Annotated[bool, typer.Option("--abandon", help="Remove the canary.")] = False,
    timeout_seconds: TimeoutSeconds = 600.0,
    as_json: Json = False,
) -> None:
    """Change one replica after the other; stop at the first that refuses."""
    from fairlead.clients import RewardAdminClient

    actions = [model is not None, share is not None, promote, abandon]
    if sum(actions) > 1:
        fail("got several of MODEL, --share, --promote and --abandon, allowed: one of them")
    if canary is not None and model is None:
        fail("--canary: got no MODEL, allowed: --canary with a MODEL; use --share for a loaded canary")
    found: dict[str, Any] = {}
    for one in address:
        with RewardAdminClient(one, **connection(timeout_seconds)) as client:
            served = _change(client, model, canary=canary, share=share, promote=promote, abandon=abandon)
        found[one] = [_as_json(each) for each in served]
        if not as_json:
            _show(one, served)
    if as_json:
        typer.echo(json.dumps(found, indent=2))


def _change(
    client: RewardAdminClient,
    model: str | None,
    *,
    canary: float | None,
    share: float | None,
    promote: bool,
    abandon: bool,
) -> list[ServedReward]:
    if model is not None:
        return client.load(model, canary_share=canary or 0.0)
    if share is not None:
        return client.set_share(share)
    if abandon:
        return client.abandon()
    served = client.models()
    if not promote:
        return served
    # By version, so that a repeated call succeeds without another change.
    return client.promote(served[-1].info.model_version if len(served) > 1 else "")


def _as_json(served: ServedReward) -> dict[str, object]:
    info = served.info
    return {
        "model_id": info.model.model_id,
        "model_version": info.model_version,
        "share": served.share,
        "tokenizer_fingerprint": info.model.tokenizer_fingerprint,
        "max_sequence_tokens": info.model.max_sequence_tokens,
        "calibration_temperature": info.calibration_temperature,
    }


def _show(address: str, served: list[ServedReward]) -> None:
    for each in served:
        say(f"{address}  {each.info.model_version}  {each.share:7.2%}  {each.info.model.model_id}")
