"""Prompts: import, and the review of those that were collected before anybody else sees them."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field

from services.feedback.api.bodies import MAX_ITEMS, Body, Response, TurnBody, routes, turns_of, wire_names
from services.feedback.api.tasks import AddedShown, PromptFields
from services.feedback.exports.lines import prompt_of
from services.feedback.identity import CurrentIdentity
from services.feedback.service import Service
from services.feedback.store.records import Prompt


class NewPromptBody(PromptFields):
    """A prompt to add."""

    state: Literal["new", "screened"] = "screened"
    """`new`: a reviewer has to accept it before anybody sees it."""


class PromptsRequest(Body):
    """Prompts to add."""

    prompts: list[NewPromptBody] = Field(min_length=1, max_length=MAX_ITEMS)
    """The prompts."""


class PromptsAdded(Response):
    """The prompts, in the order of the request."""

    prompts: list[AddedShown]
    """One for each."""


class ScreenBody(Body):
    """The decision about a prompt."""

    state: Literal["screened", "rejected"]
    """`screened`: labelers may see it."""
    masked: str | list[TurnBody] | None = None
    """The prompt without what must not be seen; what it said before is deleted. Only before it has tasks."""


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("prompts")
    store, run = service.store, service.threads.run

    @api.post("/prompts", response_model=PromptsAdded, summary="Add prompts")
    async def add_prompts(body: PromptsRequest) -> PromptsAdded:
        """Add prompts without tasks. The same turns again are the same prompt."""
        new = [prompt.new_prompt(service, state=prompt.state) for prompt in body.prompts]
        with wire_names():
            found = await run(store.prompts.add, new)
        return PromptsAdded(prompts=[AddedShown(id=one.id, new=one.new) for one in found])

    @api.get("/prompts", summary="List prompts")
    async def list_prompts(
        identity: CurrentIdentity, state: Literal["new", "screened", "rejected"] = "new"
    ) -> dict[str, Any]:
        """Return prompts in the order in which they were added, by default those that wait for a review."""
        found = await run(store.prompts.page, state=state)
        if found:
            await run(store.accesses.add, identity.name, "prompts")
        return {"prompts": [_shown(one) for one in found]}

    @api.patch("/prompts/{prompt}", summary="Screen a prompt")
    async def screen(prompt: str, body: ScreenBody) -> dict[str, Any]:
        """Accept, mask or reject a prompt that was collected."""
        masked = None if body.masked is None else turns_of(body.masked)
        with wire_names():
            return _shown(await run(store.prompts.screen, prompt, body.state, masked=masked))

    return api


def _shown(prompt: Prompt) -> dict[str, Any]:
    names = ("id", "source", "consent", "language", "split_group", "state", "made")
    return {name: getattr(prompt, name) for name in names} | {"prompt": prompt_of(prompt.turns)}
