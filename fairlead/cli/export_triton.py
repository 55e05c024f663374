"""`fairlead export-triton`: a reward model as a model repository that a Triton server loads."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fairlead.cli.export import Kind
from fairlead.cli.output import need, with_examples


class Packing(StrEnum):
    """How a merged batch is cut into forward passes."""

    SORTED = "sorted"
    ARRIVAL = "arrival"
    EACH = "each"


_EXPORT = with_examples(
    "Write a reward model as a repository for NVIDIA Triton: config.pbtxt (Python backend, ragged batching "
    "allowed), 1/model.py, the model's folder and a README. Its scores are those of Fairlead's own service. "
    "What is no reward model is refused. `tritonserver --model-repository DIR` serves it.",
    "fairlead export-triton runs/quickstart/reward_model triton",
    "fairlead export-triton org/reward-model triton --name helpful --dtype bfloat16 --force",
    "fairlead serve reward --set reward.engine=triton --set reward.path=runs/quickstart/reward_model",
)


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("export-triton", help=_EXPORT)(export_triton)


def export_triton(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id of a reward model.")],
    target: Annotated[
        Path, typer.Argument(metavar="DIR", help="The repository; other models may be in it already.")
    ],
    name: Annotated[str, typer.Option(help="The model's name in the repository.")] = "reward",
    dtype: Annotated[Kind, typer.Option(help="Type that the model's body computes in.")] = Kind.FLOAT32,
    packing: Annotated[
        Packing,
        typer.Option(
            help="Forward passes of a merged batch: of like length, padded in order of arrival, or by row."
        ),
    ] = Packing.SORTED,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Sequences merged into one call at most.")] = 64,
    link: Annotated[bool, typer.Option("--link", help="Link to the model's folder, do not copy it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export of that name.")] = False,
) -> None:
    """Becomes the export's process."""
    need("torch")
    command = [sys.executable, "-m", "services.reward.triton.export", model, str(target), "--name", name]
    command += ["--dtype", dtype.value, "--packing", packing.value, "--max-batch-size", str(max_batch_size)]
    command += ["--link"] * link + ["--force"] * force
    os.execv(command[0], command)
