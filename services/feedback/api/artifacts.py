"""What was made of judgments, what a person or a prompt reached, and forgetting."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal, Self

from fastapi import APIRouter
from pydantic import Field, model_validator

from services.feedback.api.bodies import Body, routes, wire_names
from services.feedback.identity import CurrentIdentity
from services.feedback.service import Service
from services.feedback.store.lineage import Made


class ArtifactBody(Body):
    """A model that was trained."""

    id: str
    """What it is called, such as a digest."""
    kind: Literal["reward_model", "policy"]
    """What it is."""
    made_from: list[str] = Field(max_length=10_000)
    """Ids of snapshots and models that it was made from."""
    place: str = ""
    """Where it is."""
    details: dict[str, Any] = Field(default_factory=dict)
    """More about it."""


class ForgetBody(Body):
    """Whom or what to forget; one of the fields."""

    person: str | None = None
    """Id of a person."""
    user: str | None = Field(default=None, max_length=1_024)
    """An end user, as collected prompts named them."""
    prompt: str | None = None
    """Id of a prompt."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.person, self.user, self.prompt)) != 1:
            raise ValueError("`person`, `user` or `prompt`, one of them")
        return self


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("artifacts")
    store, run = service.store, service.threads.run

    @api.post("/artifacts", status_code=201, summary="Register a model")
    async def register(body: ArtifactBody) -> dict[str, Any]:
        """Register a model with what it was made from; the same again changes nothing."""
        with wire_names():
            found = await run(
                store.artifacts.add,
                body.kind,
                body.id,
                body.made_from,
                place=body.place,
                details=body.details,
            )
        return asdict(found)

    @api.get("/artifacts", summary="List snapshots and models")
    async def list_artifacts(tainted: bool = False) -> dict[str, Any]:
        """Return all artifacts, or those that have learnt from something that was erased."""
        return {"artifacts": [asdict(one) for one in await run(store.artifacts.all, tainted=tainted)]}

    @api.get("/artifacts/{artifact}", summary="Show a snapshot or model")
    async def show_artifact(artifact: str, judgments: bool = False) -> dict[str, Any]:
        """Return an artifact, all that it was made from, all that was made of it, and whose judgments it was
        made of.

        `lineage` has the artifact after its sources, each with what it was directly `made_from`. With
        `judgments=true` the ids of all judgments are returned, too.
        """
        found = await run(store.artifacts.get, artifact)
        sources = await run(store.artifacts.sources, artifact)
        made = await run(store.artifacts.made_of, artifact)
        lineage, people = await run(store.lineage.backward, artifact)
        shown = asdict(found) | {
            "sources": [asdict(one) for one in sources],
            "made_of_it": [asdict(one) for one in made],
            "lineage": [_made(one) for one in lineage],
            "people": [asdict(one) for one in people],
        }
        return shown | ({"judgments": await run(store.lineage.judgments, artifact)} if judgments else {})

    @api.get("/reach/{kind}/{name}", summary="What a person, user, prompt or judgment reached")
    async def reach(
        kind: Literal["person", "user", "prompt", "judgment"],
        name: str,
        identity: CurrentIdentity,
        texts: bool = False,
    ) -> dict[str, Any]:
        """Return ids of all prompts, answers, tasks, entries and artifacts that forgetting would concern.

        `lineage` has the artifacts, each after those that it was made from, with the number of its judgments,
        of which `reached` are concerned. `pseudonym` is the name of a person in exports. With `texts=true`
        the texts are returned that forgetting deletes, to look for them in files elsewhere.
        """
        found, lineage = await run(store.lineage.forward, *_subject(service, kind, name))
        pseudonym = (await run(store.people.get, name)).pseudonym if kind == "person" else None
        shown = asdict(found) | {"lineage": [_made(one) for one in lineage], "pseudonym": pseudonym}
        if texts:
            shown["texts"] = await run(store.lineage.texts, found)
            await run(store.accesses.add, identity.name, "read", "" if kind == "user" else name)
        return shown

    @api.post("/forget", status_code=201, summary="Forget")
    async def forget(body: ForgetBody, identity: CurrentIdentity) -> dict[str, Any]:
        """Erase a person, an end user or a prompt, and mark the models that have learnt from it."""
        kind, name = next((key, value) for key, value in body.model_dump().items() if value is not None)
        found = await run(store.erasures.forget, *_subject(service, kind, name), actor=identity.name)
        return asdict(found)

    return api


def _made(one: Made) -> dict[str, Any]:
    counts = {"made_from": list(one.made_from), "judgments": one.judgments, "reached": one.reached}
    return asdict(one.artifact) | counts


def _subject(service: Service, kind: str, name: str) -> tuple[str, str]:
    """Return kind and name as the store has them: an end user is known by a keyed hash."""
    return ("subject", service.store.subject(name)) if kind == "user" else (kind, name)
