"""Simulated labelers as HTTP clients of a feedback service: each a thread with a connection of its own.

What they prefer is a parameter. They do what people do, so the same loop can be tested without people.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from fairlead.errors import ConfigError, FairleadError, ProcessFailed
from fairlead.feedback_client import FeedbackClient, Task

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 0.1
_LONGEST_IDLE_SECONDS = 1.0
"""Most of the time there is nothing to do, and models need the processor."""
_TASKS_HELD = 40
"""Tasks that all labelers hold together: requests cost more time than what is in them, but with more tasks
the first labelers would have all."""
_COHORTS = ("train", "heldout")
_FLAG = "--with-simulated-labelers"


class SimulatedLabeler(Protocol):
    """Somebody who ranks."""

    @property
    def name(self) -> str:
        """Handle of the labeler; nobody else has it."""

    def ranks(self, prompt: str, texts: Sequence[str]) -> Sequence[int]:
        """Return the rank of each text, 1 for the best; equal ranks are ties.

        Args:
            prompt: text, or the last message of a conversation.
            texts: the answers, in the order shown.
        """


Cohorts = Mapping[str, Sequence[SimulatedLabeler]]
"""The labelers of the cohorts `train` and `heldout`."""


def load_cohorts(named: str, *, seed: int) -> Cohorts:
    """Import a function `(*, seed) -> Cohorts` and call it.

    Args:
        named: `module:name`; the module may be in the working directory.
        seed: of the run.

    Raises:
        ConfigError: it cannot be imported, or returns something else.
    """
    module, _, name = named.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)(seed=seed)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            _FLAG, got=f"{named} ({error})", allowed="MODULE:NAME of a function with the argument `seed`"
        ) from error
    if not isinstance(found, Mapping) or not found.get("train") or set(found) - set(_COHORTS):
        raise ConfigError(
            _FLAG,
            got=f"{named}, which returns {found!r}",
            allowed="a function that returns lists of labelers by cohort: `train`, and optionally `heldout`",
        )
    return found


@contextmanager
def labelling(
    connect: Callable[[], FeedbackClient],
    cohorts: Cohorts,
    *,
    project: str | None,
    failed: Callable[[ProcessFailed], None],
) -> Iterator[None]:
    """Let simulated labelers work on the tasks of a project during the block.

    Args:
        connect: opens a connection; it may sign in by handle, as on the service's own machine.
        cohorts: who works.
        project: name of the project; None for the service's own.
        failed: called in the thread of a labeler whose own code raised an error; it ranks nothing more.

    Raises:
        FairleadError: they cannot be added, as the client says.
    """
    with connect() as client:
        known = {one["handle"] for one in client.call("GET", "/people")["people"]}
        for cohort, labelers in cohorts.items():
            for name in (one.name for one in labelers if one.name not in known):
                body = {"handle": name, "kind": "simulated", "cohort": cohort}
                client.call("POST", "/people", body)
    done = threading.Event()
    count = max(1, _TASKS_HELD // sum(map(len, cohorts.values())))
    next_tasks = partial(FeedbackClient.next_tasks, count=count, project=project, kinds=["rank"])
    threads = [
        threading.Thread(
            target=_work, args=(connect, one, next_tasks, done, failed), name=one.name, daemon=True
        )
        for labelers in cohorts.values()
        for one in labelers
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _work(
    connect: Callable[[], FeedbackClient],
    labeler: SimulatedLabeler,
    next_tasks: Callable[[FeedbackClient], Sequence[Task]],
    done: threading.Event,
    failed: Callable[[ProcessFailed], None],
) -> None:
    with connect() as client:
        signed_in, idle = False, _IDLE_SECONDS
        while not done.is_set():
            try:
                if not signed_in:
                    client.sign_in(handle=labeler.name)
                    signed_in = True
                if tasks := next_tasks(client):
                    _rank(client, labeler, tasks)
                    idle = _IDLE_SECONDS
                else:
                    done.wait(idle)
                    idle = min(2 * idle, _LONGEST_IDLE_SECONDS)
            except FairleadError as error:
                logger.warning("simulated labeler %s: %s", labeler.name, error)
                signed_in = False
                done.wait(_LONGEST_IDLE_SECONDS)
            except Exception as error:
                # A mistake in the labeler's own code would come again with the same task.
                logger.exception("simulated labeler %s failed, and ranks nothing more", labeler.name)
                failed(
                    ProcessFailed(
                        f"simulated labeler {labeler.name} failed ({type(error).__name__}: {error}); "
                        "mend it, and the same command continues"
                    )
                )
                return


def _rank(client: FeedbackClient, labeler: SimulatedLabeler, tasks: Sequence[Task]) -> None:
    rankings = []
    for task in tasks:
        ranks = labeler.ranks(task.prompt[-1].content, list(task.answers.values()))
        rankings.append((task.assignment, dict(zip(task.answers, ranks, strict=True))))
    client.rank_many(rankings)
