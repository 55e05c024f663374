"""Whether a labeler may take tasks: the quiz comes first, and who misses too many known answers is held.

Only in projects with `least_gold`. Nothing that was handed in is lost or rejected by it.
"""

from __future__ import annotations

import logging

from fairlead.errors import PermissionDenied
from services.feedback.gold import gold_of
from services.feedback.service import Service
from services.feedback.store.records import Person, Project

logger = logging.getLogger(__name__)

LAST_QUESTIONS = 20
"""Questions with known answers that count, the newest."""
ENOUGH_QUESTIONS = 8
"""With fewer nobody is held: an honest labeler misses some by accident."""


def why_not(service: Service, project: Project, person: Person) -> str:
    """Return why a person may take no task of a project, in words for them; empty if they may."""
    least = project.settings.least_gold
    if not least:
        return ""
    hold = service.store.holds.of_person(project.id, person.id)
    if hold is not None:
        return (
            f"You ranked {hold.accepted} of the last {hold.asked} questions with known answers as the "
            f"guidelines say; {least:.0%} are asked for."
        )
    if person.kind == "labeler" and not _passed(service, project, person) and _asks_quiz(service, project):
        return f"Before you start, the quiz asks for {least:.0%} right answers."
    return ""


def check(service: Service, project: Project, person: Person) -> None:
    """Check that a person may take tasks of a project.

    Raises:
        PermissionDenied: they have to pass the quiz first, or a lead lets them continue.
    """
    if why := why_not(service, project, person):
        raise PermissionDenied(
            f"no task of {project.settings.name} for now: {why} Take the quiz, or ask a lead"
        )


def look(service: Service, entry: str) -> None:
    """Hold the person of an answer to a question with a known answer who has missed too many."""
    store = service.store
    if (measured := store.holds.measured_by(entry)) is None:
        return
    project, person = measured
    found = store.snapshots.of_entries(store.holds.answers(project, person, last=LAST_QUESTIONS))
    right = [gold.accepts(one.judgment.ranks) for one in found if (gold := gold_of(one.task)) is not None]
    if (
        len(right) >= ENOUGH_QUESTIONS
        and sum(right) / len(right) < store.projects.get(project).settings.least_gold
    ):
        store.holds.start(project, person, accepted=sum(right), asked=len(right))
        logger.warning(
            "%s is held: %d of %d questions with known answers were ranked as accepted",
            person,
            sum(right),
            len(right),
        )


def _asks_quiz(service: Service, project: Project) -> bool:
    """Return whether the project has guidelines, and questions for a quiz about them."""
    store = service.store
    return bool(store.projects.guidelines(project.id)) and any(
        task.state != "withdrawn" and task.prompt and gold_of(task)
        for task in store.tasks.page(project.id, why="gold")
    )


def _passed(service: Service, project: Project, person: Person) -> bool:
    readings = service.store.projects.readings(project.id, person.id)
    return any(one.quiz is not None and one.quiz >= project.settings.least_gold for one in readings)
