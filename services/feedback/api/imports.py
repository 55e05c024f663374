"""Tasks and rankings of other tools, with their authors."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from services.feedback.api.bodies import MAX_ITEMS, Body, Response, routes
from services.feedback.exports import argilla, label_studio
from services.feedback.exports.incoming import BroughtIn, bring_in
from services.feedback.service import Service


class ArgillaRequest(Body):
    """Records of Argilla."""

    project: str | None = Field(default=None, max_length=64)
    """Name of the project; that of the configuration by default."""
    records: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_ITEMS)
    """As `Record.to_dict` writes them."""
    question: str = argilla.QUESTION
    """Name of the ranking question."""


class LabelStudioRequest(Body):
    """Tasks of Label Studio."""

    project: str | None = Field(default=None, max_length=64)
    """Name of the project; that of the configuration by default."""
    tasks: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_ITEMS)
    """As its export in JSON has them, with results of Ranker or Pairwise."""


class BroughtInShown(Response):
    """What was brought in."""

    tasks: int
    """Tasks that were not there before."""
    judgments: int
    """Judgments that were not there before."""
    repeated: int
    """Judgments that were there before."""


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("imports")
    store, run = service.store, service.threads.run

    async def project_id(name: str | None) -> str:
        return (await run(store.projects.get, name or service.section.project.name)).id

    @api.post("/imports/argilla", summary="Bring in records of Argilla")
    async def from_argilla(body: ArgillaRequest) -> BroughtInShown:
        """Add tasks and submitted rankings, each author as a person. The same records again add nothing."""
        items = argilla.from_records(body.records, question=body.question)
        return _shown(await run(bring_in, store, await project_id(body.project), "argilla", items))

    @api.post("/imports/label-studio", summary="Bring in tasks of Label Studio")
    async def from_label_studio(body: LabelStudioRequest) -> BroughtInShown:
        """Add tasks and rankings, each annotator as a person. The same tasks again add nothing."""
        items = label_studio.from_tasks(body.tasks)
        return _shown(await run(bring_in, store, await project_id(body.project), "label-studio", items))

    return api


def _shown(found: BroughtIn) -> BroughtInShown:
    return BroughtInShown(tasks=found.tasks, judgments=found.judgments, repeated=found.repeated)
