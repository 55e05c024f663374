"""Prompts of the deployed policy: gateways hand exchanges in, leads draw from those that were accepted."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from fairlead.types import Message
from services.feedback.api.bodies import (
    MAX_EXCHANGES,
    MAX_ITEMS,
    Body,
    IdempotencyKey,
    Response,
    TurnBody,
    routes,
    wire_names,
)
from services.feedback.collection.intake import Exchange, Intake
from services.feedback.exports.lines import prompt_of
from services.feedback.service import Service
from services.runtime.http.conversations import MetadataBody

Word = Annotated[str, Field(max_length=200, pattern=r"^[!-~]*$")]
"""Type of an identifier from outside."""


class ExchangeBody(Body):
    """A request to the policy whose user agreed that it is kept."""

    id: Annotated[str, Field(min_length=16, max_length=64, pattern=r"^[0-9a-f]+$")]
    """Random, in hexadecimal digits. It decides whether the exchange is drawn."""
    messages: Annotated[list[TurnBody], Field(min_length=1, max_length=200)]
    """The conversation; the last message is the one that was answered."""
    consent: Literal["asked", "notice"]
    """By what the user agreed: the request asked for it, or a notice says so. Without it nothing is kept."""
    notice: Annotated[str, Field(max_length=100, pattern=r"^[!-~]*$")] = ""
    """Version of the notice."""
    user: str = Field(default="", max_length=1_024)
    """The end user. Only a keyed hash is kept, by which they can be forgotten."""
    key: Word = ""
    """Id of the API key of the request."""
    request_id: Word = ""
    """Id of the request."""
    weight_versions: list[Annotated[str, Field(max_length=200)]] = Field(default_factory=list, max_length=100)
    """Weights that answered."""
    metadata: MetadataBody = Field(default_factory=dict)
    """Of the request."""

    def exchange(self) -> Exchange:
        """Return it as the intake takes it."""
        return Exchange(
            id=self.id,
            turns=tuple(Message(turn.role, turn.content) for turn in self.messages),
            consent=f"{self.consent}:{self.notice}" if self.notice else self.consent,
            user=self.user,
            api_key=self.key,
            request_id=self.request_id,
            weight_versions=tuple(self.weight_versions),
            metadata=self.metadata,
        )


class ExchangesRequest(Body):
    """Exchanges to hand in."""

    exchanges: list[ExchangeBody] = Field(min_length=1, max_length=MAX_EXCHANGES)
    """In any order."""


class ExchangesTaken(Response):
    """The exchanges were taken. What became of them is not said: the caller may not read."""

    taken: int
    """Their number."""


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("prompts of the policy")
    collected, run = service.store.collected, service.threads.run
    intake = Intake(service.store, service.section.collect)

    @api.post("/exchanges", response_model=ExchangesTaken, status_code=202, summary="Hand in exchanges")
    async def hand_in_exchanges(body: ExchangesRequest, key: IdempotencyKey = None) -> ExchangesTaken:
        """Keep prompts that the policy was sent, with personal data masked; see `feedback.collect`."""
        exchanges = [one.exchange() for one in body.exchanges]
        with wire_names():
            outcomes = await run(intake.add, key or secrets.token_hex(16), exchanges)
        for outcome, number in outcomes.items():
            service.metrics.exchanges.labels(outcome).inc(number)
        return ExchangesTaken(taken=len(exchanges))

    @api.get("/collected", summary="Draw accepted prompts")
    async def draw(
        count: Annotated[int, Query(ge=1, le=MAX_ITEMS)] = 100, seed: Annotated[int, Query(ge=0)] = 0
    ) -> dict[str, Any]:
        """Return accepted prompts of no task in an order drawn at random; `all` is how many there are. Each
        represents `weight` exchanges.
        """
        found, number = await run(collected.pool, count, seed=seed)
        prompts = [
            {
                "id": one.prompt.id,
                "prompt": prompt_of(one.prompt.turns),
                "weight": (1 + one.alike) / one.share,
            }
            for one in found
        ]
        return {"prompts": prompts, "all": number}

    @api.get("/figures/collection", summary="What became of exchanges")
    async def figures() -> dict[str, Any]:
        """Return how many exchanges had which outcome, by day and API key of the gateway."""
        return {"counts": await run(collected.counts)}

    return api
