"""One sample that is being generated: its prompt, its tokens so far, and when it ends.

Used by the engine's thread. Knows nothing about batches; the only thing it knows about the cache is the
column where the sample starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fairlead.types import Completion, FinishReason, SamplingParams, VersionSpan, WeightVersion
from services.policy.detokenizer import Detokenizer


@dataclass(slots=True, eq=False)
class SampleState:
    """One sample of a request."""

    prompt: tuple[int, ...]
    """Token ids of the prompt."""
    sampling: SamplingParams
    """Sampling parameters."""
    key: int
    """Key of its random stream."""
    stop_ids: frozenset[int]
    """Token ids that end it: EOS and those of the request."""
    limit: int
    """Largest number of new tokens: `max_new_tokens`, or fewer if the context is shorter."""
    detokenizer: Detokenizer | None = None
    """Text so far; only if a stop string or a stream needs it."""
    token_ids: list[int] = field(default_factory=list)
    """Tokens sampled so far."""
    logprobs: list[float] = field(default_factory=list)
    """Log-prob of each token."""
    changes: list[tuple[WeightVersion, int]] = field(default_factory=list)
    """Weight versions, each with the index of its first token; the spans are built from it once at the end.
    """
    finish_reason: FinishReason | None = None
    """Set with the last token."""
    start: int = 0
    """Column of the cache where it starts."""
    recomputed: bool = False
    """Whether keys and values of older weights are computed again after a swap."""

    @property
    def num_tokens(self) -> int:
        """Largest number of tokens it may reach, prompt included."""
        return len(self.prompt) + self.limit

    def accept(self, token: int, logprob: float, version: WeightVersion) -> None:
        """Append a token and decide whether it is the last one."""
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
        """Ranges of tokens by the weights that sampled them."""
        ends = [start for _, start in self.changes[1:]] + [len(self.token_ids)]
        return tuple(
            VersionSpan(version, start, end) for (version, start), end in zip(self.changes, ends, strict=True)
        )

    def completion(self) -> Completion:
        """Return the sample as a completion, without text."""
        return Completion(
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            finish_reason=self.finish_reason,
            version_spans=self.spans,
            mixed_cache=len(self.changes) > 1 and not self.recomputed,
        )

    def delta(self) -> Completion:
        """Return the newest token as a completion, with the text that it completed."""
        assert self.detokenizer is not None
        return Completion(
            token_ids=(self.token_ids[-1],),
            logprobs=(self.logprobs[-1],),
            finish_reason=self.finish_reason,
            version_spans=(VersionSpan(self.changes[-1][0], 0, 1),),
            text=self.detokenizer.take(last=self.finish_reason is not None),
            mixed_cache=len(self.changes) > 1 and not self.recomputed,
        )
