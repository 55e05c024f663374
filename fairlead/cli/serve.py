"""`fairlead serve`: one service in the foreground, as a container or a unit file starts it."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fairlead.cli.output import Overrides, need


class Service(StrEnum):
    """What can be served."""

    POLICY = "policy"
    REWARD = "reward"
    REFERENCE = "reference"
    ROLLOUT_WORKER = "rollout-worker"


_SERVE = """Run one service in the foreground; SIGTERM or Ctrl-C drains it.

Examples:

    fairlead serve reward --config run.toml --set 'reward.addresses=["0.0.0.0:5002"]'

    fairlead serve policy --config run.toml --set policy.serve_initial=true

    fairlead serve rollout-worker --config run.toml --set queue.redis_url=redis://queue:6379
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("serve", help=_SERVE)(serve)


def serve(
    service: Annotated[Service, typer.Argument(help="Which service.")],
    config: Annotated[Path | None, typer.Option("--config", help="The run's TOML file.")] = None,
    overrides: Overrides = None,
) -> None:
    """Becomes the service's process, so that signals and exit codes are its own."""
    from fairlead.config import load, parse_overrides

    # A mistake is told here, before the slow imports of a service.
    load(config, overrides=parse_overrides(overrides or []))
    if service is not Service.ROLLOUT_WORKER:
        need("torch")
    command = [sys.executable, "-m", f"services.{service.value.replace('-', '_')}"]
    if config is not None:
        command += ["--config", str(config)]
    for flag in overrides or []:
        command += ["--set", flag]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)
