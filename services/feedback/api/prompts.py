"""Prompts: import, and the review of those that were collected before anybody else sees them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Query
from pydantic import Field, model_validator

from services.feedback.api.bodies import MAX_ITEMS, Body, Response, TurnBody, routes, turns_of, wire_names
from services.feedback.api.tasks import AddedShown, PromptFields
from services.feedback.collection.personal_data import Span
from services.feedback.collection.screening import Reason, marks, masked_turns
from services.feedback.exports.lines import prompt_of
from services.feedback.identity import CurrentIdentity
from services.feedback.service import Service
from services.feedback.store.collected import Collected
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


class SpanBody(Body):
    """A part of a prompt to mask."""

    turn: int = Field(ge=0)
    """Index of the message; 0 for plain text."""
    start: int = Field(ge=0)
    """Index of its first character, in code points."""
    end: int = Field(ge=1)
    """Index after its last."""
    kind: str = Field(default="PRIVATE", pattern=r"^[A-Z][A-Z_]{1,31}$")
    """Word of the placeholder."""


class ScreenBody(Body):
    """The decision about a prompt."""

    state: Literal["screened", "rejected"]
    """`screened`: labelers may see it. The text of a rejected prompt is deleted."""
    masked: str | list[TurnBody] | None = None
    """The prompt without what must not be seen; what it said before is deleted. Only before it has tasks."""
    spans: list[SpanBody] | None = Field(default=None, min_length=1, max_length=1_000)
    """In place of `masked`: parts that are replaced by `[KIND]`."""
    reason: Reason | None = None
    """Why it is rejected."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.masked is not None and self.spans is not None:
            raise ValueError("`masked` or `spans`, one of them")
        if self.state == "rejected" and (self.masked is not None or self.spans is not None):
            raise ValueError("`masked` and `spans` belong to `screened`")
        if self.state == "screened" and self.reason is not None:
            raise ValueError("`reason` belongs to `rejected`")
        return self


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("prompts")
    store, run = service.store, service.threads.run

    @api.post("/prompts", response_model=PromptsAdded, summary="Add prompts")
    async def add_prompts(body: PromptsRequest) -> PromptsAdded:
        """Add prompts without tasks. The same turns again are the same prompt."""
        new = [prompt.new_prompt(store, state=prompt.state) for prompt in body.prompts]
        with wire_names():
            found = await run(store.prompts.add, new)
        return PromptsAdded(prompts=[AddedShown(id=one.id, new=one.new) for one in found])

    @api.get("/prompts", summary="List prompts")
    async def list_prompts(
        identity: CurrentIdentity,
        state: Literal["new", "screened", "rejected"] = "new",
        after: str = "",
        contains: Annotated[str, Query(max_length=1_000)] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_ITEMS)] = MAX_ITEMS,
    ) -> dict[str, Any]:
        """Return prompts in the order in which they were added, by default those that wait for a review.

        `marks` are the parts to look at: placeholders of what is masked, and `SUSPECT` for what may be
        personal data. `after` is the id of the last prompt of the page before. With `contains`, the newest
        prompts of every state are returned whose id begins with it or whose text contains it.
        """
        if contains:
            several = await run(store.prompts.containing, contains, limit=limit)
            found: list[tuple[Prompt, Collected | None]] = [(prompt, None) for prompt in several]
        else:
            found = await run(store.collected.page, state, after=after, limit=limit)
        if found:
            await run(store.accesses.add, identity.name, "prompts")
        return {"prompts": [_shown(prompt, collected) for prompt, collected in found]}

    @api.patch("/prompts/{prompt}", summary="Screen a prompt")
    async def screen(prompt: str, body: ScreenBody, identity: CurrentIdentity) -> dict[str, Any]:
        """Accept, mask or reject a prompt."""
        screener = None if identity.person is None else identity.person.id
        masked = None if body.masked is None else turns_of(body.masked)
        if body.spans is not None:
            known = await run(store.prompts.get, prompt)
            spans = [(one.turn, Span(one.start, one.end, one.kind)) for one in body.spans]
            masked = masked_turns(known.turns, spans)
        with wire_names():
            decided = await run(
                store.collected.decide,
                prompt,
                body.state,
                screener=screener,
                masked=masked,
                reason=body.reason,
            )
        return _shown(decided, None)

    return api


def _shown(prompt: Prompt, collected: Collected | None) -> dict[str, Any]:
    names = ("id", "source", "consent", "language", "split_group", "state", "made")
    shown = {name: getattr(prompt, name) for name in names}
    found = [
        {"turn": one.turn, "start": one.span.start, "end": one.span.end, "kind": one.span.kind}
        | {"masked": one.masked}
        for one in marks(prompt.turns)
    ]
    shown |= {"prompt": prompt_of(prompt.turns) if prompt.turns else None, "marks": found}
    if collected is not None:
        shown |= {name: getattr(collected, name) for name in ("metadata", "masked", "alike", "reason")}
    return shown
