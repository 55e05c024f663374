"""`fairlead quickstart`: the example of the checkout, from nothing to a report."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fairlead.cli.output import Overrides, fail, with_examples

_MODULE = "examples.parcel_help"

_QUICKSTART = with_examples(
    "Align a small language model on this machine, in minutes and offline, and write a report.\n\n"
    "Fine-tuning, reward model and PPO run through the same services as on a cluster.",
    "fairlead quickstart",
    "fairlead quickstart --seed 3 --fresh",
    "fairlead quickstart --rounds 2",
    "fairlead quickstart --break-it",
)


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("quickstart", help=_QUICKSTART)(quickstart)


def quickstart(
    seed: Annotated[int | None, typer.Option(help="Every draw is derived from it.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of going on.")] = False,
    rounds: Annotated[
        int | None, typer.Option(help="Turns of the loop; from the second on the reward model is refreshed.")
    ] = None,
    break_it: Annotated[
        bool, typer.Option("--break-it", help="Hack the reward instead: a poor reward model, no KL penalty.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Becomes the example's process."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "examples" / "parcel_help" / "__main__.py").is_file():
        fail(
            f"the quickstart is part of the source checkout, and there is none around {checkout / 'fairlead'}"
        )
    environment = dict(os.environ)
    paths = [str(checkout), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-m", _MODULE, *(["--fresh"] if fresh else [])]
    if break_it:
        command.append("--break-it")
    if rounds is not None:
        command += ["--rounds", str(rounds)]
    if seed is not None:
        command += ["--seed", str(seed)]
    for flag in overrides or []:
        command += ["--set", flag]
    os.execve(command[0], command, environment)
