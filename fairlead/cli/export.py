"""`fairlead export`: the models of a run as folders that `transformers` loads."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fairlead.cli.output import RunPath, need, run_folder, with_examples


class Part(StrEnum):
    """What a run may leave."""

    POLICY = "policy"
    REWARD_MODEL = "reward_model"


class Kind(StrEnum):
    """Types of the weights in the files."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


_EXPORT = with_examples(
    "Write policy and reward model of a run as folders that the AutoModel classes of transformers load, each "
    "with tokenizer, chat template, generation settings and a model card.",
    "fairlead export runs/quickstart models/parcel-help",
    "fairlead export runs/quickstart models/parcel-help --which best --dtype bfloat16 --force",
    "fairlead export runs/quickstart models/early --only policy --which 1-8",
)


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("export", help=_EXPORT)(export)


def export(
    run: RunPath,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The new folder: whole or not there.")],
    which: Annotated[
        str, typer.Option(help="Weights of the policy: last, best, sft (before PPO), or a version like 1-20.")
    ] = "last",
    only: Annotated[Part | None, typer.Option(help="One of the two alone.")] = None,
    dtype: Annotated[Kind, typer.Option(help="Type of the weights in the files.")] = Kind.FLOAT32,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Of a run that trained an adapter (ppo.lora): that alone.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Becomes the export's process."""
    need("train")
    command = [sys.executable, "-m", "trainer.export", str(run_folder(run)), str(target)]
    command += ["--which", which, "--dtype", dtype.value]
    if only is not None:
        command += ["--only", only.value]
    if adapter:
        command.append("--adapter")
    if force:
        command.append("--force")
    os.execv(command[0], command)
