"""What flows between the rooms of the house: frozen dataclasses without behaviour.

Token ids and log-probs are tuples: immutable, hashable, cheap to hand across threads. The wire form of
each stands in `fairlead/codec/`; nothing here knows protobuf, gRPC, Redis or torch.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from fairlead.errors import InvalidInput


@dataclass(frozen=True, slots=True, order=True)
class WeightVersion:
    """Names a set of policy weights; ordered by incarnation, then update."""

    incarnation: int
    """Which start of the trainer published it, from 1. (0, 0) is the model as loaded from its path."""
    update: int
    """Optimizer updates behind it, from 0."""

    def __str__(self) -> str:
        return f"{self.incarnation}-{self.update}"

    @classmethod
    def parse(cls, text: str) -> WeightVersion:
        """The inverse of `str`.

        Raises:
            InvalidInput: if the text is not `<incarnation>-<update>`.
        """
        match = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})", text)
        if match is None:
            raise InvalidInput("weight_version", got=text, allowed="<incarnation>-<update>, such as 1-20")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a completion is drawn."""

    temperature: float = 1.0
    """Logits are divided by it; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus mass kept, in (0, 1]."""
    top_k: int = 0
    """Most likely tokens kept; 0 keeps all."""
    max_new_tokens: int = 64
    """Tokens generated at most."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end a completion and stay part of it; the model's own EOS ids always count."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end a completion at the token that completes them."""
    seed: int = 0
    """Seed of the draw."""


class FinishReason(enum.Enum):
    """Why a completion ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Which weights made the tokens [start, end)."""

    version: WeightVersion
    """The weights."""
    start: int
    """Index of the first token."""
    end: int
    """Index behind the last token."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy answered."""

    token_ids: tuple[int, ...]
    """Sampled ids, the stop id included."""
    logprobs: tuple[float, ...]
    """log π_behaviour of each id under the distribution that was sampled."""
    finish_reason: FinishReason | None
    """Why it ended; None only in the deltas of a stream."""
    version_spans: tuple[VersionSpan, ...]
    """Weights of every token, in order."""
    text: str = ""
    """Decoded, special tokens left out."""
    mixed_cache: bool = False
    """True if newer weights attended to keys and values of older ones."""


@dataclass(frozen=True, slots=True)
class Generated:
    """The answers to one prompt."""

    completions: tuple[Completion, ...]
    """One for each sample, in order."""
    num_prompt_tokens: int
    """Tokens of the prompt."""


@dataclass(frozen=True, slots=True)
class GeneratedPiece:
    """What is new of one answer while it is made."""

    index: int
    """Of the sample."""
    delta: Completion
    """Its next tokens; the last piece of a sample has a finish reason."""
    num_prompt_tokens: int
    """Tokens of the prompt."""


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    """What was said."""


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


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model service serves."""

    model_id: str
    """Hub id or path as configured."""
    tokenizer_fingerprint: str
    """SHA-256 of the tokenizer's definition."""
    vocabulary_size: int
    """Rows of the embedding; ids are below it."""
    max_sequence_tokens: int
    """Longest sequence, prompt and response together."""
    dtype: str
    """Computation type, such as `float32`."""


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """What a policy replica serves."""

    model: ModelInfo
    """The model."""
    weight_version: WeightVersion
    """The weights in use."""
    max_slots: int
    """Sequences decoded at the same time at most."""
    max_samples: int
    """Largest number of samples of one request."""


@dataclass(frozen=True, slots=True)
class RewardInfo:
    """What a reward replica serves."""

    model: ModelInfo
    """The model."""
    model_version: str
    """SHA-256 of its weights, shortened."""
    calibration_temperature: float = 0.0
    """Scores divided by it are calibrated; 0 if nobody has measured it."""
    canary_model_version: str = ""
    """Version of the model that scores a share of the traffic on trial; empty if there is none."""
    canary_share: float = 0.0
    """That share, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class ServedReward:
    """One of the models that a reward replica scores with."""

    info: RewardInfo
    """What it is."""
    share: float
    """Share of the traffic that it scores, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class ReferenceInfo:
    """What a reference replica serves."""

    model: ModelInfo
    """The model."""


@dataclass(frozen=True, slots=True)
class TextPair:
    """A prompt and response as text, tokenized by the reward service."""

    prompt: str
    """The prompt."""
    response: str
    """The response."""
    messages: tuple[Message, ...] = ()
    """The turns that the response answers; if there are any, they are the prompt, and `prompt` is unread."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A prompt and response as token ids."""

    prompt_token_ids: tuple[int, ...]
    """Ids of the prompt."""
    response_token_ids: tuple[int, ...]
    """Ids of the response, at least one."""


@dataclass(frozen=True, slots=True)
class WholeText:
    """Prompt and response in one text, as it was shown to a model: special tokens written out, or none."""

    text: str
    """The text."""


ScoreItem = TextPair | TokenPair | WholeText


class Priority(enum.Enum):
    """Who is served first when a model is busy."""

    ONLINE = "online"
    """Somebody waits for the answer."""
    BULK = "bulk"
    """Nobody does: data to be filtered, files to be scored."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one request."""

    scores: tuple[float, ...]
    """One for each item, in order."""
    model_version: str
    """Version of the model that made them."""
    num_tokens: tuple[int, ...]
    """Tokens read for each item."""
    queue_seconds: float = 0.0
    """Time that the request waited for the model."""
    compute_seconds: float = 0.0
    """Time that the model took, with what else was in its batches."""
    calibration_temperature: float = 0.0
    """Scores divided by it are calibrated: σ(difference) is the probability that a labeler prefers one
    response of a prompt to another (temperature scaling, Guo et al. 2017). 0 if nobody has measured it."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One call of Generate, checked and tokenized."""

    request_id: str
    """Names the request in logs."""
    prompt_token_ids: tuple[int, ...]
    """Ids of the prompt, at least one."""
    sampling: SamplingParams
    """How to sample."""
    num_samples: int = 1
    """Completions wanted."""
    min_version: WeightVersion | None = None
    """Weights at least this new must answer."""
    alone: bool = False
    """Nothing else is computed while this is."""
