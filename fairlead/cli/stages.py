"""The verbs that train on this machine: `quickstart`, `sft`, `reward-model`, `dpo` and `ppo`."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import ConfigFile, ConfigOption, Overrides, fail, load_config, need, with_examples

if TYPE_CHECKING:
    from fairlead.config import RunConfig

# Exit codes after SIGHUP, SIGINT and SIGTERM: a stop that a person requested is not an error.
_STOPPED_BY_SIGNAL = (129, 130, 143)

_QUICKSTART_MODULE = "examples.parcel_help"

Force = Annotated[bool, typer.Option("--force", help="Run the stage again even if it has finished.")]

_QUICKSTART = with_examples(
    "Align a small language model on this machine, in minutes and offline, and write a report.\n\n"
    "Fine-tuning, reward model and PPO run with the same services as on a cluster.",
    "fairlead quickstart",
    "fairlead quickstart --seed 3 --fresh",
    "fairlead quickstart --rounds 2",
    "fairlead quickstart --method rloo",
    "fairlead quickstart --break-it",
)
_SFT = with_examples(
    "Fine-tune the base model on demonstrations.",
    "fairlead sft run.toml",
    "fairlead sft run.toml --set sft.epochs=3 --set name=second-try",
)
_REWARD_MODEL = with_examples(
    "Train the reward model on comparisons, starting from the fine-tuned model.",
    "fairlead reward-model run.toml --set reward_model.epochs=2",
)
_DPO = with_examples(
    "Align the policy on comparisons, without a reward model and without sampling: DPO and its relatives "
    "(IPO, SimPO, KTO …), as preference.loss says, starting from the fine-tuned model.\n\n"
    "The policy is written to the folder preference/ of the run.",
    "fairlead dpo run.toml",
    "fairlead dpo run.toml --set preference.beta=0.05 --set preference.sft_coefficient=1",
    "fairlead dpo run.toml --set preference.loss=kto --set data.thumbs=thumbs.jsonl",
)
_PPO = with_examples(
    "Align the policy by PPO: start the queue, the services, the rollout workers and the trainer, and "
    "restart those that die.\n\n"
    "Ctrl-C stops everything in order; the same command continues the run.",
    "fairlead ppo run.toml",
    "fairlead ppo run.toml --set ppo.updates=50",
    "fairlead ppo run.toml --set queue.redis_url=redis://localhost:6379",
)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("quickstart", help=_QUICKSTART)(quickstart)
    app.command("sft", help=_SFT)(sft)
    app.command("reward-model", help=_REWARD_MODEL)(reward_model)
    app.command("dpo", help=_DPO)(dpo)
    app.command("ppo", help=_PPO)(ppo)


def quickstart(
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    rounds: Annotated[
        int | None,
        typer.Option(help="Number of rounds; from the second on, the reward model is trained again."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How the policy learns: ppo, rloo, grpo, dr-grpo, gspo, cispo, reinforce++, "
            "reinforce++-baseline, online-dpo or online-dpo-soft.",
        ),
    ] = None,
    break_it: Annotated[
        bool,
        typer.Option("--break-it", help="Hack the reward instead: a poor reward model and no KL penalty."),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Run the example in place of this process."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "examples" / "parcel_help" / "__main__.py").is_file():
        fail(f"the quickstart needs a source checkout; {checkout / 'fairlead'} is not in one")
    need("train")
    need("feedback")
    environment = dict(os.environ)
    paths = [str(checkout), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-m", _QUICKSTART_MODULE, *(["--fresh"] if fresh else [])]
    if break_it:
        command.append("--break-it")
    if method is not None:
        command += ["--method", method]
    if rounds is not None:
        command += ["--rounds", str(rounds)]
    if seed is not None:
        command += ["--seed", str(seed)]
    for flag in overrides or []:
        command += ["--set", flag]
    os.execve(command[0], command, environment)


def sft(
    run: ConfigFile = None, config: ConfigOption = None, overrides: Overrides = None, force: Force = False
) -> None:
    """Run supervised fine-tuning."""
    _run("sft", load_config(run, config, overrides), force=force)


def reward_model(
    run: ConfigFile = None, config: ConfigOption = None, overrides: Overrides = None, force: Force = False
) -> None:
    """Train the reward model."""
    _run("reward_model", load_config(run, config, overrides), force=force)


def dpo(
    run: ConfigFile = None, config: ConfigOption = None, overrides: Overrides = None, force: Force = False
) -> None:
    """Run the preference stage."""
    _run("preference", load_config(run, config, overrides), force=force)


def ppo(
    run: ConfigFile = None, config: ConfigOption = None, overrides: Overrides = None, force: Force = False
) -> None:
    """Run PPO."""
    _run("ppo", load_config(run, config, overrides), force=force)


def _run(stage: str, settings: RunConfig, *, force: bool) -> None:
    from rich.console import Console

    from fairlead import log
    from fairlead.config import ignored
    from fairlead.local.run import run_stage

    style = settings.observe.log_style
    log.setup(style="human" if style == "auto" else style, level=settings.observe.log_level)
    need("train")
    for message in ignored.of_processes(settings):
        logging.getLogger(__name__).warning("%s", message)
    _warn_about_memory(stage, settings)
    outcome = run_stage(settings, stage, console=Console(stderr=True), force=force)
    if outcome.code in _STOPPED_BY_SIGNAL:
        typer.echo(outcome.message, err=True)
        raise typer.Exit(outcome.code)
    if outcome.code:
        fail(outcome.message, code=outcome.code)
    typer.echo(f"{outcome.message}: {settings.folder.root}{_summary(settings.folder.result(stage))}")


def _warn_about_memory(stage: str, settings: RunConfig) -> None:
    """Log one line if the stage needs more memory than the machine has; the stage starts nevertheless."""
    from fairlead.errors import FairleadError
    from fairlead.planning.plan import plan_run

    try:
        warnings = plan_run(settings, read_data=False, stage=stage.replace("_", "-")).warnings()
    except FairleadError:
        return  # the process that loads the model reports the error
    if warnings:
        logging.getLogger(__name__).warning("%s (`fairlead plan` shows the details)", "; ".join(warnings))


def _summary(path: Path) -> str:
    from fairlead.local.screen import result_figures

    figures = result_figures(json.loads(path.read_text(encoding="utf-8")))
    return f" ({figures})" if figures else ""
