"""Fairlead's own dialect: scores, rankings and best-of-n of texts and conversations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response

from fairlead.clients import ranking
from fairlead.types import Priority, ScoreItem, Scores
from services.gateway.backend import Backend
from services.gateway.dialects.openai_chat import cut_at_stop
from services.gateway.dialects.rewards_bodies import (
    MAX_TURNS,
    RESPONSES_FIELDS,
    BestOfNRequest,
    BestOfNResponse,
    CandidateSampling,
    RankingEntry,
    RankRequest,
    RankResponse,
    RewardEntry,
    RewardsRequest,
    RewardsResponse,
    Timing,
)
from services.runtime.caller_fields import caller_fields
from services.runtime.http.body import json_route
from services.runtime.http.call import CurrentCall, HttpCall
from services.runtime.http.failures import ERROR_RESPONSES
from services.runtime.http.json_limits import BodyLimits


def router(backend: Backend) -> APIRouter:
    """Return the routes."""
    limits = _body_limits(max_items=backend.max_items, max_text_bytes=backend.max_text_bytes)
    routes = APIRouter(tags=["rewards"], route_class=json_route(lambda: limits), responses=ERROR_RESPONSES)

    @routes.post("/v1/rewards", response_model=RewardsResponse, summary="Score responses")
    async def rewards(body: RewardsRequest, call: CurrentCall) -> Response:
        """Score each response and return the scores in order. If one item is invalid, nothing is scored."""
        with caller_fields(body.service_fields):
            scores = await backend.score(body.score_items(), call, priority=Priority(body.priority))
        values = (ranking.calibrated(scores) if body.calibrated else scores).scores
        entries = [
            RewardEntry(index=index, reward=value, num_tokens=tokens)
            for index, (value, tokens) in enumerate(zip(values, scores.num_tokens, strict=True))
        ]
        return _json(RewardsResponse(rewards=entries, **_scored(backend, call, scores, body.calibrated)))

    @routes.post("/v1/rewards:rank", response_model=RankResponse, summary="Rank responses to a prompt")
    async def rank(body: RankRequest, call: CurrentCall) -> Response:
        """Rank responses to one prompt, best first."""
        with caller_fields(RESPONSES_FIELDS):
            entries, scored = await _ranked(
                backend, call, body.score_items(), body.responses, body.calibrated
            )
        return _json(RankResponse(ranking=entries, **scored))

    @routes.post("/v1/rewards:best-of-n", response_model=BestOfNResponse, summary="Find the best response")
    async def best_of_n(body: BestOfNRequest, call: CurrentCall) -> Response:
        """Rank the given responses, or responses that the policy service generates, and return the best."""
        responses = body.responses
        if responses is None:
            sampling = body.sampling or CandidateSampling()
            with caller_fields(sampling.service_fields):
                generated = await backend.generate(
                    body.prompt_input(), sampling.params(), call, num_samples=sampling.n
                )
            responses = [cut_at_stop(one.text, sampling.stop) for one in generated.completions]
        places = {"items": "prompt", "request": "prompt"} if body.responses is None else RESPONSES_FIELDS
        with caller_fields(places):
            entries, scored = await _ranked(
                backend, call, body.score_items(responses), responses, body.calibrated
            )
        return _json(
            BestOfNResponse(best=entries[0], ranking=entries, generated=body.responses is None, **scored)
        )

    return routes


def _body_limits(*, max_items: int, max_text_bytes: int) -> BodyLimits:
    return BodyLimits(
        entries={
            "items": max_items,
            "responses": max_items,
            "prompt": MAX_TURNS,
            "items[].prompt": MAX_TURNS,
            "items[].messages": MAX_TURNS,
            "sampling.stop": 16,
        },
        max_text_bytes=max_text_bytes,
    )


async def _ranked(
    backend: Backend,
    call: HttpCall,
    items: Sequence[ScoreItem],
    responses: Sequence[str],
    calibrate: bool | None,
) -> tuple[list[RankingEntry], dict[str, Any]]:
    """Score and rank responses; return the entries and the fields of `ScoredResponse`."""
    scores = await backend.score(items, call)
    found = ranking.rank(responses, scores, calibrate=calibrate)
    entries = [
        RankingEntry(
            index=one.index,
            reward=one.score,
            probability=one.probability,
            num_tokens=one.num_tokens,
            response=one.response,
        )
        for one in found.ranked
    ]
    return entries, _scored(backend, call, scores, found.is_calibrated)


def _scored(backend: Backend, call: HttpCall, scores: Scores, is_calibrated: bool) -> dict[str, Any]:
    """Return the fields of `ScoredResponse`."""
    return {
        "request_id": call.request_id,
        "model": backend.reward_model(scores.model_version),
        "model_version": scores.model_version,
        "calibrated": is_calibrated,
        "calibration_temperature": scores.calibration_temperature or None,
        "total_tokens": sum(scores.num_tokens),
        "timing": Timing(
            total_seconds=round(time.monotonic() - call.started, 6),
            queue_seconds=round(scores.queue_seconds, 6),
            compute_seconds=round(scores.compute_seconds, 6),
        ),
    }


def _json(body: RewardsResponse | RankResponse | BestOfNResponse) -> Response:
    # Serialized once, by pydantic; FastAPI would validate and convert the body again.
    return Response(body.model_dump_json(), media_type="application/json")
