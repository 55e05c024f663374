"""Prompt tasks and their outcomes, as they pass through the queue."""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.types.generation import Completion, Message, SamplingParams
from fairlead.types.weights import WeightVersion


@dataclass(frozen=True, slots=True)
class PromptTask:
    """One prompt to be completed, once or several times, and scored."""

    task_id: int
    """Position in the run's order of prompts, from 0; identifies the task for the whole run."""
    prompt_token_ids: tuple[int, ...]
    """Token ids of the policy's tokenizer."""
    prompt_text: str
    """The prompt as text."""
    sampling: SamplingParams
    """How to sample the completion; the seed is the same for every sending of the task."""
    min_version: WeightVersion
    """Oldest weights allowed."""
    messages: tuple[Message, ...] = ()
    """The messages, if the prompt is a conversation; `prompt_text` is then only for display."""
    num_samples: int = 1
    """Number of completions, which form a group; each has a random stream of its own."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion with everything that the trainer needs."""

    completion: Completion
    """The policy's completion."""
    score: float
    """Score of the reward model."""
    reward_version: str
    """Version of the reward model."""
    reference_logprobs: tuple[float, ...]
    """log π_ref of each completion token at the sampling temperature; empty if the trainer computes them."""
    scored_as_text: bool = False
    """Whether the reward model read text because its tokenizer differs."""
    generate_seconds: float = 0.0
    """Time for the completion."""
    score_seconds: float = 0.0
    """Time for the score and the reference log-probs, which run at the same time."""
    terms: tuple[tuple[str, float], ...] = ()
    """Of a combined reward: the name and the score of each term."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Why a task failed for good."""

    reason: str
    """Stable name of the cause, such as `prompt_too_long`."""
    detail: str
    """Description of the cause."""


TaskResult = tuple[Rollout, ...] | DeadLetter
"""What a task ends with: as many rollouts as it has samples, in their order, or one dead letter."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a task and its history in the queue."""

    task: PromptTask
    """The task as it was sent."""
    result: TaskResult
    """A rollout for each sample of the task, or the reason why there is none."""
    worker: str
    """Consumer (worker) that finished it."""
    deliveries: int
    """Number of deliveries to workers, the last included."""
    failures: int
    """Number of failures reported by workers before."""

    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        """The rollouts; none for a dead task."""
        return () if isinstance(self.result, DeadLetter) else self.result

    @property
    def versions(self) -> frozenset[WeightVersion]:
        """The weights of every token of every rollout."""
        return frozenset(
            span.version for rollout in self.rollouts for span in rollout.completion.version_spans
        )
