"""`fairlead export` and `export-triton`: write the models of a run.

Each verb checks its flags and is then replaced by the process that does the work.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fairlead.cli.output import RunPath, need, run_folder, with_examples


class ExportedModel(StrEnum):
    """The models that a run may have."""

    POLICY = "policy"
    REWARD_MODEL = "reward_model"


class WeightsType(StrEnum):
    """Data types of weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class TritonPacking(StrEnum):
    """How a merged batch is split into forward passes."""

    SORTED = "sorted"
    ARRIVAL = "arrival"
    EACH = "each"


_EXPORT = with_examples(
    "Write the policy and the reward model of a run as folders that the AutoModel classes of transformers "
    "load, each with its tokenizer, chat template, generation settings and a model card.",
    "fairlead export runs/quickstart models/parcel-help",
    "fairlead export runs/quickstart models/parcel-help --which best --dtype bfloat16 --force",
    "fairlead export runs/quickstart models/early --only policy --which 1-8",
)
_EXPORT_TRITON = with_examples(
    "Write a reward model as a model repository for NVIDIA Triton: config.pbtxt (Python backend, ragged "
    "batching allowed), 1/model.py, the model's folder and a README. Its scores equal those of Fairlead's "
    "own service. Models that are not reward models are refused. `tritonserver --model-repository DIR` "
    "serves it.",
    "fairlead export-triton runs/quickstart/reward_model triton",
    "fairlead export-triton org/reward-model triton --name helpful --dtype bfloat16 --force",
    "fairlead serve reward --set reward.engine=triton --set reward.path=runs/quickstart/reward_model",
)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("export", help=_EXPORT)(export)
    app.command("export-triton", help=_EXPORT_TRITON)(export_triton)


def export(
    run: RunPath,
    target: Annotated[
        Path, typer.Argument(metavar="DIR", help="The new folder; it appears only when it is complete.")
    ],
    which: Annotated[
        str,
        typer.Option(help="Weights of the policy: last, best, ema, preference, sft, or a version like 1-20."),
    ] = "last",
    only: Annotated[ExportedModel | None, typer.Option(help="Export only one of the two models.")] = None,
    dtype: Annotated[
        WeightsType, typer.Option(help="Data type of the weights in the files.")
    ] = WeightsType.FLOAT32,
    adapter: Annotated[
        bool,
        typer.Option("--adapter", help="Export only the adapter of a run that trained one (ppo.lora)."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Run trainer.export in place of this process."""
    need("train")
    arguments = [str(run_folder(run)), str(target), "--which", which, "--dtype", dtype.value]
    if only is not None:
        arguments += ["--only", only.value]
    arguments += ["--adapter"] * adapter + ["--force"] * force
    _become("trainer.export", arguments)


def export_triton(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id of a reward model.")],
    target: Annotated[
        Path, typer.Argument(metavar="DIR", help="The model repository; it may contain other models.")
    ],
    name: Annotated[str, typer.Option(help="Name of the model in the repository.")] = "reward",
    dtype: Annotated[
        WeightsType, typer.Option(help="Data type in which the body of the model computes.")
    ] = WeightsType.FLOAT32,
    packing: Annotated[
        TritonPacking,
        typer.Option(
            help="Forward passes of a merged batch: sorted by length, padded in order of arrival, or per row."
        ),
    ] = TritonPacking.SORTED,
    max_batch_size: Annotated[
        int, typer.Option(min=1, help="Maximum number of sequences merged into one call.")
    ] = 64,
    link: Annotated[
        bool, typer.Option("--link", help="Link to the model's folder instead of copying it.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export of that name.")] = False,
) -> None:
    """Run services.reward.triton.export in place of this process."""
    need("torch")
    arguments = [model, str(target), "--name", name, "--dtype", dtype.value, "--packing", packing.value]
    arguments += ["--max-batch-size", str(max_batch_size)]
    arguments += ["--link"] * link + ["--force"] * force
    _become("services.reward.triton.export", arguments)


def _become(module: str, arguments: list[str]) -> NoReturn:
    command = [sys.executable, "-m", module, *arguments]
    os.execv(command[0], command)
