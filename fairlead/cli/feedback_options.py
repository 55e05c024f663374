"""What the verbs of `fairlead feedback` share: the address of the service, the project, and the client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fairlead.feedback_client import FeedbackClient

Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="FAIRLEAD_FEEDBACK_ADDRESS",
        metavar="HOST:PORT",
        help="Address of the service, or the URL under which it is published. The API key is in "
        "FAIRLEAD_API_KEY.",
    ),
]
Project = Annotated[str | None, typer.Option("--project", help="Name of the project.")]
_CONNECT_SECONDS = 10.0
"""How long a command tries to connect: the service may be starting, or the address wrong."""


def client_of(address: str) -> FeedbackClient:
    """Return a client with the certificates and rules of the environment."""
    from fairlead.config import load
    from fairlead.feedback_client import FeedbackClient

    config = load()
    tls = config.tls if config.tls.on else None
    return FeedbackClient(
        address, tls=tls, allow_insecure=config.keys.allow_insecure, first_connect_seconds=_CONNECT_SECONDS
    )
