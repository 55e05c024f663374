"""`fairlead plan`: the memory and disk space that a run needs, before it starts."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import (
    ConfigFile,
    ConfigOption,
    Json,
    Overrides,
    load_config,
    print_in_full,
    with_examples,
)

if TYPE_CHECKING:
    from rich.table import Table

    from fairlead.planning.machine import Machine
    from fairlead.planning.plan import RunPlan, StagePlan
    from fairlead.planning.process_memory import ProcessMemory
    from fairlead.planning.proposal import Proposal

_PLAN = with_examples(
    "Show the memory of every process and the disk space that a run needs.\n\n"
    "Reads the configuration, the config.json of its models and the headers of their files. Loads no weights "
    "and does not need torch. Weights, gradients and optimizer states are exact, the rest is an estimate. If "
    "PPO does not fit on the GPUs, it also shows settings with which it does: ranks, recomputed blocks, "
    "smaller batches, adapters, models divided among GPUs, weights in main memory.",
    "fairlead plan run.toml",
    "fairlead plan run.toml --set ppo.lora.rank=16 --set ppo.gradient_checkpointing=true",
    "fairlead plan run.toml --gpu-gib 80 --memory-gib 256 --json",
    "fairlead plan run.toml --stage preference",
    "fairlead plan run.toml --gpus 8 --gpu-gib 80 --set ranks.nodes=2",
)

_GIB = 1 << 30
# Columns are left out from the last to the first if the terminal is too narrow.
_COLUMNS = (
    *("total", "weights", "activations", "optimizer", "gradients", "gathered", "cache", "incoming"),
    *("copied", "loading", "runtime"),
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("plan", help=_PLAN)(plan)


def plan(  # noqa: PLR0913, PLR0917 - a flag each
    run: ConfigFile = None,
    config: ConfigOption = None,
    overrides: Overrides = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            "--prompt-tokens",
            min=1,
            help="Tokens of the longest prompt; by default estimated from its bytes.",
        ),
    ] = None,
    memory_gib: Annotated[
        float | None,
        typer.Option(
            "--memory-gib", min=0, help="Main memory of the machine to plan for. Default: this machine's."
        ),
    ] = None,
    gpu_gib: Annotated[
        float | None,
        typer.Option("--gpu-gib", min=0, help="GPU memory of the machine to plan for; 0 for no GPU."),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option("--stage", help="Only this stage: sft, reward-model, preference or ppo."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="Number of GPUs of the machine to plan for.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the plan; the exit code is 0 whether the run fits or not."""
    from fairlead.config import ignored
    from fairlead.planning import proposal as proposals
    from fairlead.planning.plan import plan_run

    settings = load_config(run, config, overrides)
    machine = _machine(memory_gib, gpu_gib, gpus)
    found = plan_run(settings, machine=machine, prompt_tokens=prompt_tokens, stage=stage)
    without_effect = (*ignored.of_ppo(settings.ppo), *ignored.of_processes(settings))
    found = dataclasses.replace(found, notes=(*found.notes, *without_effect))
    proposal = None
    if stage in (None, "ppo") and machine.has_gpu and proposals.obstacle(found):
        proposal = proposals.propose(
            settings, machine=machine, nodes=settings.ranks.nodes, prompt_tokens=prompt_tokens
        )
    if as_json:
        typer.echo(json.dumps(_as_json(found) | _proposal_as_json(proposal), indent=2))
    else:
        _show(found, str(settings.folder.root))
        if proposal is not None:
            typer.echo(_proposal_line(proposal))


def _proposal_as_json(proposal: Proposal | None) -> dict[str, object]:
    if proposal is None:
        return {}
    return {"proposal": {"settings": dict(proposal.settings), "obstacle": proposal.obstacle}}


def _proposal_line(proposal: Proposal) -> str:
    if proposal.obstacle:
        tried = "adapters, models divided among GPUs, and the smallest batches"
        return f"PPO does not fit, even with {tried}: {proposal.obstacle}"
    flags = " ".join(
        f"--set {key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in proposal.settings.items()
    )
    return f"PPO fits with {flags or 'these settings'}"


def _machine(memory_gib: float | None, gpu_gib: float | None, gpus: int | None) -> Machine:
    from fairlead.planning.machine import Machine, this_machine

    here = this_machine()
    return Machine(
        host_bytes=here.host_bytes if memory_gib is None else int(memory_gib * _GIB),
        gpu_bytes=here.gpu_bytes if gpu_gib is None else int(gpu_gib * _GIB),
        num_gpus=here.num_gpus if gpus is None else gpus,
    )


def _as_json(found: RunPlan) -> dict[str, object]:
    """Return the plan as JSON values; all sizes are bytes."""
    return {
        "stages": [
            {
                "stage": stage.stage,
                "host_bytes": stage.on("cpu"),
                "gpu_bytes": stage.on("cuda"),
                "processes": [process.as_dict() for process in stage.processes],
            }
            for stage in found.stages
        ],
        "disk": dataclasses.asdict(found.disk) | {"total": found.disk.total},
        "machine": dataclasses.asdict(found.machine),
        "notes": list(found.notes),
        "warnings": list(found.warnings()),
    }


def _show(found: RunPlan, folder: str) -> None:
    from rich.console import Console

    from fairlead.planning.formulas import in_words

    console = Console(highlight=False, soft_wrap=True)
    for stage in found.stages:
        console.print(f"[bold]{stage.stage}[/bold]: {_sums(found, stage)}")
        print_in_full(console, _table(list(stage.processes)))
        console.print()
    disk = found.disk
    console.print(
        f"[bold]disk[/bold], {folder}: {in_words(disk.total)} (checkpoints {in_words(disk.checkpoints)}, "
        f"weight store {in_words(disk.weight_store)}, models {in_words(disk.models)}); "
        f"{in_words(disk.free)} free"
    )
    has = f"{in_words(found.machine.host_bytes)} of main memory"
    number = found.machine.num_gpus
    gpu = f", {'a GPU' if number == 1 else f'{number} GPUs'} of {in_words(found.machine.gpu_bytes)}"
    gpu = gpu if found.machine.has_gpu else ", no GPU"
    console.print(f"[bold]machine[/bold]: {has}{gpu}")
    for note in found.notes:
        console.print(f"note: {note}", style="dim", markup=False)
    for warning in found.warnings():
        console.print(f"warning: {warning}", style="yellow", markup=False)
    if not found.warnings():
        console.print(
            f"{found.stages[0].stage if len(found.stages) == 1 else 'The run'} fits.", style="green"
        )


def _sums(found: RunPlan, stage: StagePlan) -> str:
    """Return the memory of a stage in one line: of the machine, or of a pod in a cluster."""
    from fairlead.planning.formulas import in_words

    if found.nodes > 1:
        parts = [f"up to {in_words(max(process.pod_bytes for process in stage.processes))} of main memory"]
        most = max(process.gpu_bytes for process in stage.processes)
        parts += [f"{in_words(most)} on a GPU"] if most else []
        return f"{' and '.join(parts)} of one pod"
    parts = [f"{in_words(stage.on('cpu'))} of main memory"]
    if stage.on("cuda"):
        loads = stage.on_gpus(found.machine.num_gpus)
        one = f"{in_words(loads[0])} on the GPU"
        each = f"{', '.join(map(in_words, loads))} on {len(loads)} GPUs"
        parts.append(one if len(loads) == 1 else each)
    return " and ".join(parts)


def _table(processes: list[ProcessMemory]) -> Table:
    """Return a table with a row per process; columns that are empty are left out."""
    from rich.table import Table

    from fairlead.planning.formulas import in_words

    names = [
        process.name + (f" × {process.replicas}" if process.replicas > 1 else "") for process in processes
    ]
    cells = {
        column: [in_words(value) if (value := _value(process, column)) else "–" for process in processes]
        for column in _COLUMNS
    }
    shown = [column for column in _COLUMNS if any(_value(process, column) for process in processes)]
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    rows.add_column("process", no_wrap=True)
    for column in shown:
        rows.add_column(column, justify="right", no_wrap=True)
    for index, name in enumerate(names):
        rows.add_row(name, *(cells[column][index] for column in shown))
    return rows


def _value(process: ProcessMemory, column: str) -> int:
    return process.model_bytes + process.runtime if column == "total" else int(getattr(process, column))
