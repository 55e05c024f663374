"""Bodies of our own dialect: what /v1/rewards:rank and :best-of-n take and give."""

from __future__ import annotations

import secrets
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from fairlead.types import Message, SamplingParams, ScoreItem
from services.gateway.dialects.reward_bodies import (
    PROMPT,
    RESPONSES,
    Answer,
    Body,
    Prompt,
    Scored,
    examples,
    pair,
)


class RankRequest(Body):
    """Responses to one prompt, to be put in order."""

    model_config = ConfigDict(json_schema_extra=examples({"prompt": PROMPT, "responses": RESPONSES}))

    prompt: Prompt = ""
    """What the responses answer."""
    responses: Annotated[list[str], Field(min_length=1)]
    """The candidates."""
    calibrated: bool | None = None
    """As for /v1/rewards; null: if the model can be."""

    @model_validator(mode="after")
    def _turns_end_before_an_answer(self) -> Self:
        self.score_items()
        return self

    def score_items(self) -> list[ScoreItem]:
        """As the reward service takes them."""
        return [pair(self.prompt, response) for response in self.responses]


class Ranked(Answer):
    """One response in its place."""

    index: int
    """Of the response in the request, or in the order in which it was generated."""
    reward: float
    """Its score."""
    probability: float | None
    """That a labeler finds it the best of all (Plackett–Luce); null if scores are not calibrated."""
    num_tokens: int
    """Tokens that the model read, prompt and response together."""
    response: str
    """The text."""


class RankResponse(Scored):
    """Responses, best first; equal ones in the order of the request."""

    ranking: list[Ranked]
    """All of them."""


class Sampling(Body):
    """How candidates are generated."""

    n: int = Field(default=4, ge=1, le=4_096)
    """Candidates; the policy service may allow fewer."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    """Logits are divided by it."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass kept."""
    top_k: int = Field(default=0, ge=0, le=2**31 - 1)
    """Most likely tokens kept; 0 keeps all."""
    max_new_tokens: int = Field(default=256, ge=1, le=2**31 - 1)
    """Tokens of a candidate at most."""
    stop: tuple[str, ...] = Field(default=(), max_length=16)
    """Texts that end a candidate."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """The same seed and weights give the same candidates; null: a random one."""

    def params(self) -> SamplingParams:
        """As the policy service takes them."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_new_tokens=self.max_new_tokens,
            stop_strings=tuple(text for text in self.stop if text),
            seed=secrets.randbits(62) if self.seed is None else self.seed,
        )


class BestOfNRequest(Body):
    """A prompt, and candidates or how to generate them on the policy service."""

    model_config = ConfigDict(
        json_schema_extra=examples(
            {"prompt": PROMPT, "responses": RESPONSES},
            {"prompt": PROMPT, "sampling": {"n": 4, "temperature": 1.0, "max_new_tokens": 64}},
        )
    )

    prompt: Prompt = ""
    """What is answered."""
    responses: Annotated[list[str], Field(min_length=1)] | None = None
    """Candidates; null: they are generated."""
    sampling: Sampling | None = None
    """How to generate; null: as the defaults say."""
    calibrated: bool | None = None
    """As for /v1/rewards; null: if the model can be."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.responses is not None and self.sampling is not None:
            raise ValueError("`responses`, or `sampling` to generate them")
        if self.responses is None and not self.prompt:
            raise ValueError("a `prompt` to answer, or `responses`")
        pair(self.prompt, "")
        return self

    def asked(self) -> str | tuple[Message, ...]:
        """The prompt as the policy service takes it."""
        return self.prompt if isinstance(self.prompt, str) else tuple(turn.message() for turn in self.prompt)


class BestOfNResponse(Scored):
    """The best response, and all of them in order."""

    best: Ranked
    """The first of `ranking`."""
    ranking: list[Ranked]
    """All candidates, best first."""
    generated: bool
    """Whether the policy service made them."""
