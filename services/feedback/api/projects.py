"""Projects and the versions of their guidelines."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field

from services.feedback.api.bodies import Body, Kind, Seconds, routes
from services.feedback.identity import CurrentIdentity
from services.feedback.service import Service
from services.feedback.store.records import Guideline, Project, ProjectSettings


class ProjectChange(Body):
    """Settings of a project; absent ones stay, or have the defaults of the configuration in a new one."""

    kinds: list[Kind] | None = Field(default=None, min_length=1)
    """Kinds of its tasks."""
    min_answers: int | None = None
    """Fewest answers of a task to rank."""
    max_answers: int | None = None
    """Most answers of a task to rank."""
    overlap: int | None = None
    """Judgments wanted for a shared task."""
    shared_share: float | None = None
    """Share of the tasks that are shared."""
    gold_share: float | None = None
    """Share of a person's tasks with known answers."""
    lease_seconds: Seconds | None = None
    """How long a person may work on a task."""
    program_lease_seconds: Seconds | None = None
    """The same for programs."""
    revise_seconds: Seconds | None = None
    """How long a judgment may be revised."""
    judges: Literal["none", "train"] | None = None
    """Whether rankings of judges are trained on."""
    least_gold: float | None = None
    """Share of right answers in the quiz, and of gold questions, below which a labeler gets no task."""
    audit_share: float | None = None
    """Share of the tasks that a judge labels which people label too; at least 0.05."""

    def settings(self, before: ProjectSettings) -> ProjectSettings:
        """Return the settings with the changes."""
        given = self.model_dump(exclude_none=True, exclude={"name", "state"})
        if "kinds" in given:
            given["kinds"] = tuple(given["kinds"])
        return replace(before, **given)


class NewProject(ProjectChange):
    """A project to create."""

    name: str
    """1 to 64 of a-z, 0-9, `_`, `.` and `-`."""


class ChangedProject(ProjectChange):
    """What changes."""

    state: Literal["active", "paused", "finished"] | None = None
    """Only an active project gives out tasks."""


class NewGuideline(Body):
    """A version of the guidelines."""

    text: str
    """Markdown."""


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("projects")
    store, run = service.store, service.threads.run

    @api.get("/projects", summary="List projects")
    async def list_all(identity: CurrentIdentity) -> dict[str, Any]:
        """Return the projects by name. Labelers see what concerns them."""
        return {"projects": [_shown(one, identity) for one in await run(store.projects.all)]}

    @api.post("/projects", status_code=201, summary="Create a project")
    async def create(body: NewProject, identity: CurrentIdentity) -> dict[str, Any]:
        """Create a project."""
        defaults = ProjectSettings(**service.section.project.model_dump())
        settings = replace(body.settings(defaults), name=body.name)
        return _shown(await run(store.projects.create, settings), identity)

    @api.get("/projects/{project}", summary="Show a project")
    async def show(project: str, identity: CurrentIdentity) -> dict[str, Any]:
        """Return a project by its name."""
        return _shown(await run(store.projects.get, project), identity)

    @api.patch("/projects/{project}", summary="Change a project")
    async def change(project: str, body: ChangedProject, identity: CurrentIdentity) -> dict[str, Any]:
        """Change settings and state. Tasks that exist keep their overlap."""
        known = await run(store.projects.get, project)
        settings = body.settings(known.settings)
        state = body.state or known.state
        return _shown(await run(store.projects.change, known.id, settings, state=state), identity)

    @api.get("/projects/{project}/guidelines", summary="Read the guidelines")
    async def guidelines(project: str) -> dict[str, Any]:
        """Return all versions of the guidelines, the newest last."""
        known = await run(store.projects.get, project)
        found = await run(store.projects.guidelines, known.id)
        return {"guidelines": [_guideline(one) for one in found]}

    @api.post("/projects/{project}/guidelines", status_code=201, summary="Write the guidelines")
    async def add_guideline(project: str, body: NewGuideline) -> dict[str, Any]:
        """Add a version. Judgments name the version that applied when their task was given out."""
        known = await run(store.projects.get, project)
        return _guideline(await run(store.projects.add_guideline, known.id, body.text))

    return api


def _shown(project: Project, identity: CurrentIdentity) -> dict[str, Any]:
    settings = asdict(project.settings)
    if identity.person is not None and identity.person.role not in ("lead", "auditor"):
        # Whether a task is shared or has a known answer must not be guessed.
        settings = {name: settings[name] for name in ("name", "kinds", "lease_seconds", "revise_seconds")}
    return {"state": project.state, **settings}


def _guideline(found: Guideline) -> dict[str, Any]:
    return {"version": found.version, "text": found.text, "sha256": found.sha256, "made": found.made}
