"""One sample being generated: its prompt, what came so far, and when it ends.

Belongs to the engine's thread. Knows neither batch nor cache beyond the column where it starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fairlead.types import Completion, FinishReason, SamplingParams, VersionSpan, WeightVersion
from services.policy.detokenizer import Detokenizer


@dataclass(slots=True, eq=False)
class Sample:
    """One sample of a request."""

    prompt: tuple[int, ...]
    """Prompt ids."""
    sampling: SamplingParams
    """How to sample."""
    key: int
    """Key of its random stream."""
    stop_ids: frozenset[int]
    """Ids that end it: EOS and the request's own."""
    limit: int
    """Tokens at most: max_new_tokens, or what the context leaves."""
    detokenizer: Detokenizer | None = None
    """Text as it grows; only where a stop string or a stream needs it."""
    token_ids: list[int] = field(default_factory=list)
    """Sampled so far."""
    logprobs: list[float] = field(default_factory=list)
    """Log-prob of each."""
    changes: list[tuple[WeightVersion, int]] = field(default_factory=list)
    """Weights, and the index of their first token; what a span is made of, without making one a token."""
    finish_reason: FinishReason | None = None
    """Set by the token that ends it."""
    start: int = 0
    """Column of the cache where it starts."""

    @property
    def num_tokens(self) -> int:
        """Tokens that it may come to, prompt included."""
        return len(self.prompt) + self.limit

    def accept(self, token: int, logprob: float, version: WeightVersion) -> None:
        """Appends a token and decides whether it is the last."""
        index = len(self.token_ids)
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        last = self.changes[-1][0] if self.changes else None
        if last is not version and last != version:
            self.changes.append((version, index))
        stopped = token in self.stop_ids
        if self.detokenizer is not None:
            stopped |= self.detokenizer.add(token)
        if stopped:
            self.finish_reason = FinishReason.STOP
        elif index + 1 >= self.limit:
            self.finish_reason = FinishReason.LENGTH

    @property
    def spans(self) -> tuple[VersionSpan, ...]:
        """Which tokens are of which weights."""
        ends = [start for _, start in self.changes[1:]] + [len(self.token_ids)]
        return tuple(
            VersionSpan(version, start, end) for (version, start), end in zip(self.changes, ends, strict=True)
        )

    def completion(self) -> Completion:
        """What came of it, without text."""
        return Completion(
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            finish_reason=self.finish_reason,
            version_spans=self.spans,
            mixed_cache=len(self.changes) > 1,
        )

    def delta(self) -> Completion:
        """The newest token alone, with the text that it completed."""
        assert self.detokenizer is not None
        return Completion(
            token_ids=(self.token_ids[-1],),
            logprobs=(self.logprobs[-1],),
            finish_reason=self.finish_reason,
            version_spans=(VersionSpan(self.changes[-1][0], 0, 1),),
            text=self.detokenizer.take(last=self.finish_reason is not None),
            mixed_cache=len(self.changes) > 1,
        )
