"""Our own dialect: scores, rankings and best-of-n of texts and conversations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response

from fairlead.clients.ranking import calibrated
from fairlead.clients.ranking import rank as in_order
from fairlead.types import Priority, ScoreItem, Scores
from services.gateway.backend import Backend
from services.gateway.body import JsonRoute
from services.gateway.call import CurrentCall, HttpCall
from services.gateway.dialects.ranking_bodies import (
    BestOfNRequest,
    BestOfNResponse,
    Ranked,
    RankRequest,
    RankResponse,
    Sampling,
)
from services.gateway.dialects.reward_bodies import Reward, RewardsRequest, RewardsResponse, Timing, pair
from services.gateway.dialects.stop_texts import cut
from services.gateway.failures import ERROR_RESPONSES


def router(backend: Backend) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["rewards"], route_class=JsonRoute, responses=ERROR_RESPONSES)

    @routes.post("/v1/rewards", response_model=RewardsResponse, summary="Score responses")
    async def rewards(body: RewardsRequest, call: CurrentCall) -> Response:
        """One score for each response, in order. All or nothing: one bad item refuses the request."""
        scores = await backend.score(body.score_items(), call, priority=Priority(body.priority))
        values = (calibrated(scores) if body.calibrated else scores).scores
        found = [
            Reward(index=index, reward=value, num_tokens=tokens)
            for index, (value, tokens) in enumerate(zip(values, scores.num_tokens, strict=True))
        ]
        return _json(RewardsResponse(rewards=found, **_said(backend, call, scores, body.calibrated)))

    @routes.post("/v1/rewards:rank", response_model=RankResponse, summary="Rank responses to a prompt")
    async def rank(body: RankRequest, call: CurrentCall) -> Response:
        """Responses to one prompt, best first."""
        ranking, said = await _ranked(backend, call, body.score_items(), body.responses, body.calibrated)
        return _json(RankResponse(ranking=ranking, **said))

    @routes.post("/v1/rewards:best-of-n", response_model=BestOfNResponse, summary="The best of n responses")
    async def best_of_n(body: BestOfNRequest, call: CurrentCall) -> Response:
        """The best of the responses given, or of those that the policy service makes."""
        responses = body.responses
        if responses is None:
            how = body.sampling or Sampling()
            found = await backend.generate(body.asked(), how.params(), call, num_samples=how.n)
            responses = [cut(one.text, how.stop) for one in found.completions]
        items = [pair(body.prompt, response) for response in responses]
        ranking, said = await _ranked(backend, call, items, responses, body.calibrated)
        generated = body.responses is None
        return _json(BestOfNResponse(best=ranking[0], ranking=ranking, generated=generated, **said))

    return routes


async def _ranked(
    backend: Backend,
    call: HttpCall,
    items: Sequence[ScoreItem],
    texts: Sequence[str],
    calibrate: bool | None,
) -> tuple[list[Ranked], dict[str, Any]]:
    scores = await backend.score(items, call)
    found = in_order(texts, scores, calibrate=calibrate)
    ranking = [
        Ranked(
            index=one.index,
            reward=one.score,
            probability=one.probability,
            num_tokens=one.num_tokens,
            response=one.response,
        )
        for one in found.ranked
    ]
    return ranking, _said(backend, call, scores, found.is_calibrated)


def _said(backend: Backend, call: HttpCall, scores: Scores, calibrated: bool) -> dict[str, Any]:
    return {
        "request_id": call.request_id,
        "model": backend.reward_model,
        "model_version": scores.model_version,
        "calibrated": calibrated,
        "calibration_temperature": scores.calibration_temperature or None,
        "total_tokens": sum(scores.num_tokens),
        "timing": Timing(
            total_seconds=round(time.monotonic() - call.started, 6),
            queue_seconds=round(scores.queue_seconds, 6),
            compute_seconds=round(scores.compute_seconds, 6),
        ),
    }


def _json(answer: RewardsResponse | RankResponse | BestOfNResponse) -> Response:
    # Written once, by pydantic; FastAPI would check and convert it again.
    return Response(answer.model_dump_json(), media_type="application/json")
