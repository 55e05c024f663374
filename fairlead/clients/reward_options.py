"""What a caller of the reward client may choose beside what is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypedDict, TypeVar, cast

from fairlead.errors import InvalidInput
from fairlead.types import Message, Priority, SamplingParams, TextPair

RankPrompt = str | Sequence[Message]
"""Text, or the turns of a conversation."""
_Policy = TypeVar("_Policy")


class ScoreOptions(TypedDict, total=False):
    """Options of `score`."""

    calibrated: bool
    """Divide scores by the model's temperature: σ(difference) of two is then the probability that a labeler
    prefers one. Refused where the model has none; raw scores if not given."""
    priority: Priority
    """`BULK` lets online requests go first; online if not given."""
    request_id: str | None
    """Names the request in logs; a random one if not given."""
    max_request_tokens: int | None
    """The service refuses the request if it holds more tokens; as many as the service takes if not given."""
    timeout_seconds: float | None
    """Deadline of this call in place of the client's."""
    exclusive: bool
    """The replica computes nothing else meanwhile, and the call is not hedged; implies `fatal_to_replica`.
    For items that may be at fault."""
    fatal_to_replica: bool
    """Raise ReplicaLost if a replica dies under it, instead of trying the next."""


class RankOptions(TypedDict, total=False):
    """Options of `rank`."""

    calibrated: bool | None
    """As of `score`; calibrated if the model can be, if not given."""
    priority: Priority
    """As of `score`."""
    request_id: str | None
    """As of `score`."""
    timeout_seconds: float | None
    """As of `score`."""


class BestOfNOptions(RankOptions, Generic[_Policy], total=False):
    """Options of `best_of_n`."""

    policy: _Policy
    """Answers the prompt, in place of given responses."""
    n: int
    """How often; 8 if not given."""
    sampling: SamplingParams
    """How it answers; `SamplingParams()` if not given."""


class StreamOptions(TypedDict, total=False):
    """Options of `score_stream`."""

    priority: Priority
    """Bulk if not given: online requests go first."""
    max_in_flight: int
    """Requests that are read and whose outcome is not taken, at most; 128 if not given."""
    timeout_seconds: float
    """Deadline of the whole; a day if not given."""


class InOrderOptions(StreamOptions, total=False):
    """Options of `score_in_order`."""

    calibrated: bool
    """As of `score`."""
    progress: str
    """Shows a bar on a terminal's standard error, with this name; none if not given."""
    total: int | None
    """Requests that there will be, for the bar."""


@dataclass(frozen=True, slots=True)
class Draw(Generic[_Policy]):
    """Answers that a policy is to give."""

    policy: _Policy
    """Answers."""
    prompt: str
    """What."""
    sampling: SamplingParams
    """How."""
    n: int
    """How often."""


def draw(
    prompt: RankPrompt, responses: Sequence[str] | None, options: BestOfNOptions[_Policy]
) -> Draw[_Policy] | None:
    """What a policy is asked for; None if responses are given.

    Raises:
        InvalidInput: neither or both, or a prompt that policies do not read as it is.
    """
    policy = options.get("policy")
    if (responses is None) == (policy is None):
        got = "neither" if policy is None else "both"
        raise InvalidInput("responses", got=got, allowed="responses, or a policy that answers")
    if policy is None:
        return None
    if not isinstance(prompt, str):
        raise InvalidInput("prompt", got=f"{len(prompt)} messages", allowed="text, where a policy answers")
    n = options.get("n", 8)
    if n < 1:
        raise InvalidInput("n", got=n, allowed="at least 1")
    return Draw(policy, prompt, options.get("sampling") or SamplingParams(), n)


def rank_options(options: BestOfNOptions[_Policy]) -> RankOptions:
    """Those that are `rank`'s."""
    kept = {name: value for name, value in options.items() if name in RankOptions.__annotations__}
    return cast(RankOptions, kept)


def pairs(prompt: RankPrompt, responses: Sequence[str]) -> list[TextPair]:
    """What is scored.

    Raises:
        InvalidInput: for no responses, or a text in place of a list of them.
    """
    if isinstance(responses, str) or not responses:
        raise InvalidInput("responses", got=responses or "none", allowed="a list of texts, at least one")
    if isinstance(prompt, str):
        return [TextPair(prompt, response) for response in responses]
    return [TextPair("", response, tuple(prompt)) for response in responses]
