"""What rounds need while they run: a lock, processes on standby, a service, and programs that label."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

from rich.console import Console

from fairlead.config import RunConfig, RunFolder
from fairlead.data.chat import Prompt
from fairlead.data.records import load_prompts
from fairlead.feedback_client import FeedbackClient
from fairlead.local.run_files import RunLock
from fairlead.local.standby import Standby
from fairlead.rounds import embedded
from fairlead.rounds.feedback_labelers import FeedbackLabelers
from fairlead.rounds.iteration import Iteration
from fairlead.rounds.loop import Loop
from fairlead.rounds.sampling import TaskPlan
from fairlead.rounds.simulated import Cohorts, labelling
from fairlead.rounds.training import Training

_POLL_SECONDS_OF_PROGRAMS = 0.1
"""Time between two looks at what programs have judged, who are faster than people."""


@contextlib.contextmanager
def running(
    config: RunConfig,
    *,
    show: Callable[[str], None],
    console: Console,
    cohorts: Cohorts | None = None,
    fresh_labels: Callable[[RunConfig], AbstractContextManager[None]] | None = None,
) -> Iterator[Iteration]:
    """Yield the steps of the rounds of a run, with all that they need during the block.

    Args:
        config: the run; `[iterate]` says what is ranked. Its prompts exist already.
        show: shows a line of progress.
        console: shows the progress of a stage.
        cohorts: programs that label in place of people.
        fresh_labels: ranks answers while PPO runs, in place of those who label at the service.

    Raises:
        ProcessFailed: another command works on these rounds, or the service did not start.
        FairleadError: the prompts cannot be read, or the service needs an API key.
    """
    with contextlib.ExitStack() as stack:
        # Not the lock of the run's folder, which each stage takes.
        stack.enter_context(RunLock(RunFolder(config.folder.root / "iterate")))
        # First, since files that cannot be read are the most common mistake.
        prompts = load_prompts(config)
        standby = stack.enter_context(Standby())
        connect = _service(config, stack, show, waits=cohorts is None)
        project = config.feedback.project.name
        # A stage must not start a second service on the same store.
        config = config.model_copy(update={"feedback": config.feedback.model_copy(update={"replicas": 0})})
        labelers = _labelers(config, connect, show)
        if cohorts is not None:
            labelers.poll_seconds = _POLL_SECONDS_OF_PROGRAMS
        labelers.fresh_labels = fresh_labels
        loop = _loop(config, [*prompts.train, *prompts.heldout], labelers, Training(console, standby))
        if cohorts is None:
            yield Iteration(loop=loop, labelers=labelers, show=show)
        else:
            working = partial(labelling, connect, cohorts, project=project, failed=labelers.stop_waiting)
            yield Iteration(loop=loop, labelers=labelers, show=show, working=working)


def _service(
    config: RunConfig, stack: contextlib.ExitStack, show: Callable[[str], None], *, waits: bool
) -> Callable[[], FeedbackClient]:
    """Start a feedback service if the run has none; return what opens a connection to the one that it has.

    Args:
        config: the run.
        stack: ends the service.
        show: shows the URL to people.
        waits: whether to wait until the service is ready, since people open it next.
    """
    if not embedded.is_embedded(config):
        return partial(embedded.connect, config, config.feedback.addresses[0])
    service = stack.enter_context(embedded.embedded(config))
    if waits:
        service.connect().close()
        scheme = "https" if config.tls.on and config.feedback.tls != "off" else "http"
        show(f"people rank at {scheme}://{service.address}{config.feedback.root_path}/")
    return service.connect


def _labelers(
    config: RunConfig, connect: Callable[[], FeedbackClient], show: Callable[[str], None]
) -> FeedbackLabelers:
    section = config.iterate
    return FeedbackLabelers(
        connect=connect,
        run=config.name,
        project=config.feedback.project.name,
        wanted_judgments=section.wanted_judgments or section.tasks,
        longest_wait_seconds=section.wait_hours * 3_600,
        fresh_per_update=section.fresh_per_update if config.observe.rollout_samples else 0,
        show=show,
    )


def _loop(
    config: RunConfig, prompts: Sequence[Prompt], labelers: FeedbackLabelers, training: Training
) -> Loop:
    section = config.iterate
    return Loop(
        config=config,
        prompts=prompts,
        plan=TaskPlan(
            num_tasks=section.tasks, num_answers=section.answers, with_replacement=section.repeat_prompts
        ),
        labelers=labelers,
        training=training,
    )
