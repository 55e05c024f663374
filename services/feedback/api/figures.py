"""Figures of a project: progress, agreement, each labeler, model judges beside people, and biases.

Agreement and biases are computed from tasks drawn at random, unless others are asked for.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query

from fairlead import judgments
from services.feedback import auditing
from services.feedback.api.bodies import Why, routes
from services.feedback.reckoning import SEED, SHARED, of_project
from services.feedback.service import Service

Project = Annotated[
    str | None, Query(description="Name of the project; that of the configuration by default.")
]
Whys = Annotated[list[Why], Query(description="Why the tasks were chosen.")]


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("figures")
    store, run = service.store, service.threads.run

    async def project_id(name: str | None) -> str:
        return (await run(store.projects.get, name or service.section.project.name)).id

    @api.get("/figures/progress", summary="Progress")
    async def progress(project: Project = None) -> dict[str, Any]:
        """Return the tasks, leases, judgments and skips of a project."""
        return asdict(await run(store.figures.progress, await project_id(project)))

    @api.get("/figures/agreement", summary="Agreement")
    async def agreement(project: Project = None, why: Whys = ["random"]) -> dict[str, Any]:  # noqa: B006
        """Return the rate of agreement and Krippendorff's α, with intervals, and each two labelers' rate."""

        def work(project: str) -> dict[str, Any]:
            found = of_project(service, project, why)
            two = [pair.as_json() for pair in judgments.by_two_labelers(found)]
            return {"agreement": judgments.agreement(found, seed=SEED).as_json(), "labelers": two}

        return await run(work, await project_id(project))

    @api.get("/figures/labelers", summary="Labelers")
    async def labelers(project: Project = None) -> dict[str, Any]:
        """Return what each person has done, and how they agree with the others on the last shared tasks."""

        def work(project: str) -> dict[str, Any]:
            people = {person.id: person for person in store.people.all()}
            found = of_project(service, project, SHARED)
            agreed = {one.labeler: one.as_json() for one in judgments.leave_one_out(found)}
            return {
                "labelers": [
                    asdict(counts)
                    | {"handle": people[counts.person].handle, "kind": people[counts.person].kind}
                    | {"cohort": people[counts.person].cohort, "state": people[counts.person].state}
                    | {"agreement": agreed.get(counts.person)}
                    for counts in store.figures.labelers(project)
                ]
            }

        return await run(work, await project_id(project))

    @api.get("/figures/judges", summary="Judges")
    async def model_judges(project: Project = None) -> dict[str, Any]:
        """Return each model judge's agreement with people on audited tasks, beside people's with one another,
        its ties, and how often it says the same in both orders.
        """
        return {"judges": await run(auditing.judges, service, await project_id(project))}

    @api.get("/figures/bias", summary="Biases")
    async def bias(project: Project = None, why: Whys = ["random"]) -> dict[str, Any]:  # noqa: B006
        """Return whether places on the page and lengths decide."""

        def work(project: str) -> dict[str, Any]:
            found = of_project(service, project, why)
            return {
                "position": judgments.position_bias(found).as_json(),
                "length": judgments.length_bias(found, seed=SEED).as_json(),
            }

        return await run(work, await project_id(project))

    return api
