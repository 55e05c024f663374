"""`fairlead serve`: one service in the foreground, as a container or a systemd unit starts it."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from fairlead.cli.output import (
    ConfigFile,
    ConfigOption,
    Overrides,
    config_file,
    load_config,
    need,
    with_examples,
)
from fairlead.errors import ConfigError


class Service(StrEnum):
    """The services that can be started."""

    POLICY = "policy"
    REWARD = "reward"
    REFERENCE = "reference"
    ROLLOUT_WORKER = "rollout-worker"
    GATEWAY = "gateway"
    FEEDBACK = "feedback"
    WEIGHTS = "weights"


_SERVE = with_examples(
    "Run one service in the foreground; SIGTERM or Ctrl-C drains it.",
    "fairlead serve reward run.toml --set 'reward.addresses=[\"0.0.0.0:5002\"]'",
    "fairlead serve reward --function rewards.py:score",
    "fairlead serve policy run.toml --set policy.serve_initial=true",
    "fairlead serve rollout-worker run.toml",
    "fairlead serve gateway run.toml --set 'reward.addresses=[\"localhost:5002\"]'",
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("serve", help=_SERVE)(serve)


def serve(
    service: Annotated[Service, typer.Argument(help="The service to run.")],
    run: ConfigFile = None,
    config: ConfigOption = None,
    overrides: Overrides = None,
    function: Annotated[
        str | None,
        typer.Option(
            "--function",
            metavar="FILE.PY:NAME",
            help="With `reward`: serve a Python function as the reward; also `module:name`.",
        ),
    ] = None,
) -> None:
    """Run the service in place of this process, so that it receives signals and sets the exit code."""
    if function is not None:
        if service is not Service.REWARD:
            raise ConfigError("--function", got=function, allowed="only with `fairlead serve reward`")
        overrides = [*(overrides or []), "reward.engine=function", f"reward.function={function}"]
    # Report mistakes here, before the slow imports of a service.
    settings = load_config(run, config, overrides)
    file = config_file(run, config)
    if service in (Service.GATEWAY, Service.FEEDBACK):
        need(service.value)
    elif service not in (Service.ROLLOUT_WORKER, Service.WEIGHTS) and not (
        service is Service.REWARD and settings.reward.engine == "function"
    ):
        need("torch")
    command = [sys.executable, "-m", f"services.{service.value.replace('-', '_')}"]
    if file is not None:
        command += ["--config", str(file)]
    for flag in overrides or []:
        command += ["--set", flag]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)
