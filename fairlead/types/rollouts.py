"""A prompt on its way through the queue, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.types.conversation import Message
from fairlead.types.generation import Completion
from fairlead.types.sampling import SamplingParams
from fairlead.types.weights import WeightVersion


@dataclass(frozen=True, slots=True)
class PromptTask:
    """One prompt to be answered, scored and sent back."""

    task_id: int
    """Position in the run's order of prompts, from 0; names the task for good."""
    prompt_token_ids: tuple[int, ...]
    """The prompt under the policy's tokenizer."""
    prompt_text: str
    """The prompt as text."""
    sampling: SamplingParams
    """How to answer it; the seed belongs to the task, not to a sending."""
    min_version: WeightVersion
    """Weights at least this new must answer."""
    messages: tuple[Message, ...] = ()
    """The prompt as turns, if it is a conversation; `prompt_text` is then for people alone."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion with everything the trainer needs about it."""

    completion: Completion
    """The policy's answer."""
    score: float
    """The reward model's scalar."""
    reward_version: str
    """Version of the reward model."""
    reference_logprobs: tuple[float, ...]
    """log π_ref of each completion id at the sampling temperature."""
    scored_as_text: bool = False
    """True if the reward model read text because its tokenizer differs."""
    generate_seconds: float = 0.0
    """Time in Generate."""
    score_seconds: float = 0.0
    """Time in Score and LogProbs, which run at the same time."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Why a task was given up."""

    reason: str
    """Stable name of the cause, such as `prompt_too_long`."""
    detail: str
    """A sentence for people."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended, and through whose hands it went."""

    task: PromptTask
    """The task as it was sent."""
    result: Rollout | DeadLetter
    """What came of it."""
    worker: str
    """Consumer that finished it."""
    deliveries: int
    """Times it was delivered to a worker, the last included."""
    failures: int
    """Times a worker failed at it explicitly before."""
