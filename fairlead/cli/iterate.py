"""`fairlead iterate`: rounds of sampling, judgments of people, reward model and PPO."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import ConfigFile, ConfigOption, Overrides, load_config, need, say, with_examples

if TYPE_CHECKING:
    from fairlead.config import RunConfig
    from fairlead.rounds.simulated import Cohorts

_ITERATE = with_examples(
    "Improve the policy in rounds with people: its answers go to the feedback service, people rank them, a "
    "reward model learns from all rankings so far and must be no worse than the one before, and PPO follows."
    "\n\n"
    "Without feedback.addresses the command starts the service and prints its URL. Ctrl-C stops everything; "
    "the same command continues. See docs/feedback.md.",
    "fairlead iterate run.toml",
    "fairlead iterate run.toml --rounds 3",
    "fairlead iterate run.toml --set 'feedback.addresses=[\"feedback.example.com:443\"]'",
    "fairlead iterate run.toml --with-simulated-labelers examples.parcel_help.people:people",
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("iterate", help=_ITERATE)(iterate)


def iterate(
    run: ConfigFile = None,
    config: ConfigOption = None,
    overrides: Overrides = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Number of rounds, in place of iterate.rounds.")
    ] = None,
    simulated: Annotated[
        str | None,
        typer.Option(
            "--with-simulated-labelers",
            metavar="MODULE:NAME",
            help="Let programs rank in place of people, as HTTP clients: a function with the argument `seed` "
            "that returns labelers by cohort, `train` and `heldout`.",
        ),
    ] = None,
) -> None:
    """Run every step that has not finished yet."""
    from fairlead import log
    from fairlead.rounds.simulated import load_cohorts
    from fairlead.rounds.training import StageStopped

    settings = load_config(run, config, overrides)
    style = settings.observe.log_style
    log.setup(style="human" if style == "auto" else style, level=settings.observe.log_level)
    need("train")
    cohorts = load_cohorts(simulated, seed=settings.seed) if simulated else None
    try:
        _run(settings, rounds or settings.iterate.rounds, cohorts)
    except StageStopped as stopped:
        say(str(stopped), err=True)
        raise typer.Exit(stopped.code) from None
    except KeyboardInterrupt:
        say("stopped; the same command continues", err=True)
        raise typer.Exit(130) from None


def _run(config: RunConfig, num_rounds: int, cohorts: Cohorts | None) -> None:
    from rich.console import Console

    from fairlead.rounds import iteration
    from fairlead.rounds.embedded import is_embedded
    from fairlead.rounds.running import running
    from fairlead.rounds.steps import Steps

    section = config.iterate
    if section.fresh_per_update and not config.observe.rollout_samples:
        logging.getLogger(__name__).warning(
            "iterate.fresh_per_update is %d, but without observe.rollout_samples there are no answers to "
            "compare while PPO runs",
            section.fresh_per_update,
        )
    if is_embedded(config):
        need("feedback")
    # Before the service writes into the folder of the run, which must belong to this command.
    steps = Steps(
        config.folder.root / "iterate.json",
        key=iteration.steps_key(config),
        verb="iterate",
        total=iteration.STEPS_BEFORE + iteration.STEPS_OF_A_ROUND * num_rounds,
        show=_show,
    )
    with running(config, show=_show, console=Console(stderr=True), cohorts=cohorts) as work:
        work.run(steps, num_rounds=num_rounds)
    _show(f"done, rounds: {num_rounds}, in {config.folder.root}")


def _show(line: str) -> None:
    typer.echo(line)
