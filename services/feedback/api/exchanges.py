"""Prompts from the deployed policy: those of people who agreed wait for a reviewer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fastapi import APIRouter
from pydantic import Field

from services.feedback.api.bodies import MAX_ITEMS, Body, Response, TurnBody, routes, turns_of, wire_names
from services.feedback.service import Service
from services.feedback.store.records import NewPrompt

SOURCE = "gateway"
"""Source of collected prompts."""


class ExchangeBody(Body):
    """A prompt that the policy answered. Its answer is not kept: one answer compares nothing."""

    messages: list[TurnBody] = Field(min_length=1)
    """The conversation up to the message that was answered."""
    consent: str = ""
    """By what its author agreed, with the version of the notice. Without it nothing is kept."""
    user: str | None = Field(default=None, max_length=1_024)
    """The author. Only a keyed hash is kept, by which they can be forgotten."""
    language: str = ""
    """Code of the language."""


class ExchangesRequest(Body):
    """What the policy was asked."""

    exchanges: list[ExchangeBody] = Field(min_length=1, max_length=MAX_ITEMS)
    """In the order in which it was asked."""


class Collected(Response):
    """What became of the exchanges."""

    kept: int
    """Prompts that wait for a review."""
    known: int
    """Prompts that were there before."""
    no_consent: int
    """Exchanges whose authors did not agree."""
    user_limit: int
    """Exchanges of users who have `feedback.max_prompts_per_user` prompts already."""


def router(service: Service) -> APIRouter:
    """Return the route."""
    api = routes("exchanges")

    @api.post("/exchanges", response_model=Collected, status_code=202, summary="Collect prompts")
    async def collect(body: ExchangesRequest) -> Collected:
        """Keep the prompts of people who agreed, each once, until a reviewer accepts or rejects them."""
        with wire_names():
            found = await service.threads.run(collect_prompts, service, body.exchanges)
        for result, count in found.items():
            service.metrics.exchanges.labels(result).inc(count)
        return Collected(**found)

    return api


def collect_prompts(service: Service, exchanges: Sequence[ExchangeBody]) -> dict[str, int]:
    """Add the prompts of exchanges and return how many had each result."""
    store, limit = service.store, service.section.max_prompts_per_user
    found = dict.fromkeys(Collected.model_fields, 0)
    of_user: Counter[str] = Counter()
    new = []
    for exchange in exchanges:
        if not exchange.consent:
            found["no_consent"] += 1
            continue
        subject = None if exchange.user is None else store.subject(exchange.user)
        if subject is not None:
            of_user[subject] += 1
            if of_user[subject] == 1:
                of_user[subject] += store.prompts.count(subject)
            if of_user[subject] > limit:
                found["user_limit"] += 1
                continue
        turns = turns_of(exchange.messages)
        fields = {"consent": exchange.consent, "language": exchange.language}
        new.append(NewPrompt(turns=turns, source=SOURCE, subject=subject, state="new", **fields))
    for added in store.prompts.add(new) if new else ():
        found["kept" if added.new else "known"] += 1
    return found
