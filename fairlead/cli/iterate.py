"""`fairlead iterate`: rounds of sampling, judgments of people, reward model and PPO."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import ConfigFile, ConfigOption, Overrides, load_config, need, say, with_examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from fairlead.config import RunConfig
    from fairlead.feedback_client import FeedbackClient
    from fairlead.rounds.iteration import Iteration
    from fairlead.rounds.simulated import Cohorts
    from fairlead.rounds.training import Training

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

    from fairlead.config import RunFolder
    from fairlead.local.run_files import RunLock
    from fairlead.local.standby import Standby
    from fairlead.rounds import embedded, iteration
    from fairlead.rounds.simulated import labelling
    from fairlead.rounds.steps import Steps
    from fairlead.rounds.training import Training

    section, project = config.iterate, config.feedback.project.name
    if section.fresh_per_update and not config.observe.rollout_samples:
        logging.getLogger(__name__).warning(
            "iterate.fresh_per_update is %d, but without observe.rollout_samples there are no answers to "
            "compare while PPO runs",
            section.fresh_per_update,
        )
    # Before the service writes into the folder of the run, which must belong to this command.
    steps = Steps(
        config.folder.root / "iterate.json",
        key=iteration.steps_key(config),
        verb="iterate",
        total=1 + iteration.STEPS_OF_A_ROUND * num_rounds,
        show=_show,
    )
    with contextlib.ExitStack() as stack:
        # Not the lock of the run's folder, which each stage takes.
        stack.enter_context(RunLock(RunFolder(config.folder.root / "iterate")))
        standby = stack.enter_context(Standby())
        if embedded.is_embedded(config):
            need("feedback")
            address = stack.enter_context(embedded.embedded(config))
            scheme = "https" if config.tls.on and config.feedback.tls != "off" else "http"
            _show(f"people rank at {scheme}://{address}{config.feedback.root_path}/")
        else:
            address = config.feedback.addresses[0]

        def connect() -> FeedbackClient:
            return embedded.connect(config, address)

        if cohorts is not None:
            stack.enter_context(labelling(connect, cohorts, project=project))
        # A stage must not start a second service on the same store.
        own = config.feedback.model_copy(update={"replicas": 0})
        work = _iteration(
            config.model_copy(update={"feedback": own}), connect, Training(Console(stderr=True), standby)
        )
        work.run(steps, num_rounds=num_rounds)
    _show(f"done, rounds: {num_rounds}, in {config.folder.root}")


def _iteration(config: RunConfig, connect: Callable[[], FeedbackClient], training: Training) -> Iteration:
    from fairlead.data.records import load_prompts
    from fairlead.rounds.feedback_labelers import FeedbackLabelers
    from fairlead.rounds.iteration import Iteration
    from fairlead.rounds.loop import Loop
    from fairlead.rounds.sampling import TaskPlan

    section = config.iterate
    prompts = load_prompts(config)
    labelers = FeedbackLabelers(
        connect=connect,
        run=config.name,
        project=config.feedback.project.name,
        wanted_judgments=section.wanted_judgments or section.tasks,
        longest_wait_seconds=section.wait_hours * 3_600,
        fresh_per_update=section.fresh_per_update if config.observe.rollout_samples else 0,
        show=_show,
    )
    loop = Loop(
        config=config,
        prompts=[*prompts.train, *prompts.heldout],
        plan=TaskPlan(
            num_tasks=section.tasks, num_answers=section.answers, with_replacement=section.repeat_prompts
        ),
        labelers=labelers,
        training=training,
    )
    return Iteration(loop=loop, labelers=labelers, show=_show)


def _show(line: str) -> None:
    typer.echo(line)
