"""Verbs that run a stage on this machine: `sft`, `reward-model`, `ppo`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import ConfigFile, ConfigOption, Overrides, fail, load_config, need, with_examples

if TYPE_CHECKING:
    from fairlead.config import RunConfig

# Exit codes after SIGHUP, SIGINT, SIGTERM: what a person asked for is no error.
_ASKED_FOR = (129, 130, 143)

Force = Annotated[bool, typer.Option("--force", help="Do the stage again although it has finished.")]

_SFT = with_examples(
    "Fine-tune the base model on demonstrations.",
    "fairlead sft run.toml",
    "fairlead sft run.toml --set sft.epochs=3 --set name=second-try",
)
_REWARD_MODEL = with_examples(
    "Train the reward model on comparisons, from the fine-tuned model.",
    "fairlead reward-model run.toml --set reward_model.epochs=2",
)
_PPO = with_examples(
    "Align the policy by PPO: starts queue, services, rollout workers and trainer, and watches over them.\n\n"
    "Ctrl-C stops everything in order; the same command goes on where it stopped.",
    "fairlead ppo run.toml",
    "fairlead ppo run.toml --set ppo.updates=50",
    "fairlead ppo run.toml --set queue.redis_url=redis://localhost:6379",
)


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.command("sft", help=_SFT)(sft)
    app.command("reward-model", help=_REWARD_MODEL)(reward_model)
    app.command("ppo", help=_PPO)(ppo)


def sft(
    run: ConfigFile = None, config: ConfigOption = None, overrides: Overrides = None, force: Force = False
) -> None:
    """Supervised fine-tuning."""
    _run("sft", load_config(run, config, overrides), force=force)


def reward_model(
    run: ConfigFile = None, config: ConfigOption = None, overrides: Overrides = None, force: Force = False
) -> None:
    """Reward-model training."""
    _run("reward_model", load_config(run, config, overrides), force=force)


def ppo(
    run: ConfigFile = None, config: ConfigOption = None, overrides: Overrides = None, force: Force = False
) -> None:
    """Reinforcement learning."""
    _run("ppo", load_config(run, config, overrides), force=force)


def _run(stage: str, settings: RunConfig, *, force: bool) -> None:
    from rich.console import Console

    from fairlead import log
    from fairlead.local.run import run_stage

    style = settings.observe.log_style
    log.setup(style="human" if style == "auto" else style, level=settings.observe.log_level)
    need("train")
    _warn_of_memory(stage, settings)
    outcome = run_stage(settings, stage, console=Console(stderr=True), force=force)
    if outcome.code in _ASKED_FOR:
        typer.echo(outcome.message, err=True)
        raise typer.Exit(outcome.code)
    if outcome.code:
        fail(outcome.message, code=outcome.code)
    typer.echo(f"{outcome.message}: {settings.folder.root}{_summary(settings.folder.result(stage))}")


def _warn_of_memory(stage: str, settings: RunConfig) -> None:
    """One line if the stage takes more than there is; whether it is started all the same is for the user."""
    from fairlead.errors import FairleadError
    from fairlead.memory.plan import plan_run

    try:
        warnings = plan_run(settings, read_data=False).warnings(stage.replace("_", "-"))
    except FairleadError:
        return  # what is wrong with a model, its process says
    if warnings:
        logging.getLogger(__name__).warning("%s (`fairlead plan` says more)", "; ".join(warnings))


def _summary(path: Path) -> str:
    from fairlead.local.view import result_figures

    told = result_figures(json.loads(path.read_text(encoding="utf-8")))
    return f" ({told})" if told else ""
