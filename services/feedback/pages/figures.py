"""Figures for leads: progress, agreement, labelers, and biases."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from fastapi import APIRouter
from fastapi.responses import Response

from fairlead import judgments
from fairlead.judgments import Judgment, LabelerFigures, LengthBias
from fairlead.judgments.labelers import LAST_TASKS, LOWEST_AGREEMENT
from services.feedback.gold import gold_of
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.page import Renderer, routes
from services.feedback.pages.said import SKIP_REASONS
from services.feedback.reckoning import MEASURED, SEED, SHARED, of_project, rankings
from services.feedback.service import Service
from services.feedback.store.figures import LabelerCounts
from services.feedback.store.holds import Hold
from services.feedback.store.judged import Judged
from services.feedback.store.records import Person, Project

_HOURS = 48
PUBLISHED = (
    (0.63, "MT-Bench, people"),
    (0.726, "InstructGPT, labelers"),
    (0.773, "InstructGPT, held out"),
)
"""Agreement in published studies: Zheng et al. (2023), table 5; Ouyang et al. (2022), section 3.4."""
_PACE_HOURS = 24


@dataclass(frozen=True, slots=True)
class LabelerRow:
    """One labeler."""

    person: Person
    """Who."""
    counts: LabelerCounts
    """What they have done."""
    agreement: LabelerFigures | None
    """How they agree with the others; None if they ranked nothing that others ranked."""
    seconds: float | None
    """Median time of a ranking."""
    longer: LengthBias
    """How often they prefer the longer answer."""
    first_shown: float | None
    """Share of their best answers that were shown first, times the number of answers: 1 without a bias."""
    gold: Sequence[bool]
    """Of questions with known answers: whether they ranked them as accepted."""
    hold: Hold | None
    """Since when they get no task, because they missed too many of these."""


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the routes."""
    api = routes()
    store, run = service.store, service.threads.run

    @api.get("/projects/{project}/overview")
    async def overview(project: str, identity: CurrentIdentity) -> Response:
        def build_page() -> Response:
            known = store.projects.get(project)
            progress = store.figures.progress(known.id)
            hours = store.figures.hours(known.id, since=time.time() - _HOURS * 3600)
            pace = _pace(hours)
            return renderer.page(
                "lead/overview",
                identity.worker,
                project=known,
                progress=progress,
                hours=_hours(hours),
                pace=pace,
                remaining=progress.wanted / pace * 3600 if pace and progress.wanted else None,
                reasons=[(SKIP_REASONS.get(name, name), count) for name, count in progress.skipped.items()],
            )

        return await run(build_page)

    @api.get("/projects/{project}/agreement")
    async def agreement(project: str, identity: CurrentIdentity) -> Response:
        def build_page() -> Response:
            known = store.projects.get(project)
            found = of_project(service, known.id, MEASURED)
            two = judgments.by_two_labelers(found)
            return renderer.page(
                "lead/agreement",
                identity.worker,
                project=known,
                agreement=judgments.agreement(found, seed=SEED),
                names=_names(service, sorted({name for one in two for name in (one.first, one.second)})),
                two={pair: one for one in two for pair in ((one.first, one.second), (one.second, one.first))},
                published=PUBLISHED,
            )

        return await run(build_page)

    @api.get("/projects/{project}/labelers")
    async def labelers(project: str, identity: CurrentIdentity) -> Response:
        def build_page() -> Response:
            known = store.projects.get(project)
            rows = labeler_rows(service, known)
            return renderer.page(
                "lead/labelers",
                identity.worker,
                project=known,
                rows=rows,
                enough=LAST_TASKS,
                lowest=LOWEST_AGREEMENT,
            )

        return await run(build_page)

    @api.post("/projects/{project}/labelers/{person}/release")
    async def release(project: str, person: str) -> Response:
        known = await run(store.projects.get, project)
        await run(store.holds.release, known.id, (await run(store.people.get, person)).id)
        return renderer.redirect(f"/projects/{known.settings.name}/labelers")

    @api.get("/projects/{project}/bias")
    async def bias(project: str, identity: CurrentIdentity) -> Response:
        def build_page() -> Response:
            known = store.projects.get(project)
            found = of_project(service, known.id, MEASURED)
            return renderer.page(
                "lead/bias",
                identity.worker,
                project=known,
                position=judgments.position_bias(found),
                length=judgments.length_bias(found, seed=SEED),
            )

        return await run(build_page)

    return api


def labeler_rows(service: Service, project: Project) -> list[LabelerRow]:
    """Return everybody who has worked on a project, those to look at first."""
    people = {one.id: one for one in service.store.people.all()}
    judged = rankings(service, project.id, SHARED)
    agreements = {one.labeler: one for one in judgments.leave_one_out([one.judgment for one in judged])}
    own: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        own[one.entry.person or ""].append(one)
    gold: dict[str, list[bool]] = defaultdict(list)
    for one in rankings(service, project.id, ("gold",)):
        if (accepted := gold_of(one.task)) is not None:
            gold[one.entry.person or ""].append(accepted.accepts(one.judgment.ranks))
    holds = service.store.holds.of_project(project.id)
    rows = [
        LabelerRow(
            person=people[counts.person],
            counts=counts,
            agreement=agreements.get(counts.person),
            seconds=_median_seconds(own[counts.person]),
            longer=judgments.length_bias([one.judgment for one in own[counts.person]], seed=SEED),
            first_shown=_first_shown([one.judgment for one in own[counts.person]]),
            gold=gold[counts.person],
            hold=holds.get(counts.person),
        )
        for counts in service.store.figures.labelers(project.id)
    ]
    return sorted(rows, key=lambda row: (not _is_flagged(row), row.person.handle or ""))


def _is_flagged(row: LabelerRow) -> bool:
    return row.hold is not None or (row.agreement is not None and row.agreement.flagged)


def _median_seconds(judged: Sequence[Judged]) -> float | None:
    found = [float((one.entry.body or {}).get("seconds", 0.0)) for one in judged]
    return median(found) if any(found) else None


def _first_shown(found: Sequence[Judgment]) -> float | None:
    position = judgments.position_bias(found)
    expected = sum(sum(counts) / size for size, counts in position.first_places.items())
    return sum(counts[0] for counts in position.first_places.values()) / expected if expected else None


def _names(service: Service, people: Sequence[str]) -> Mapping[str, str]:
    known = {one.id: one for one in service.store.people.all()}
    return {person: known[person].handle or "forgotten" for person in people}


def _hours(found: Mapping[int, int]) -> list[tuple[str, int]]:
    """Return judgments by hour, the newest last, with hours without any."""
    now = int(time.time() // 3600)
    return [
        (time.strftime("%Y-%m-%d %H:00", time.gmtime(hour * 3600)), found.get(hour, 0))
        for hour in range(now - _HOURS + 1, now + 1)
    ]


def _pace(found: Mapping[int, int]) -> float:
    """Return judgments per hour over the hours of the last day in which there were any."""
    now = int(time.time() // 3600)
    busy = [count for hour, count in found.items() if hour > now - _PACE_HOURS]
    return sum(busy) / len(busy) if busy else 0.0
