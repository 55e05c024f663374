"""Comparisons for the reward model: ranked responses to a prompt, or pairs; one JSON object per line.

`records` reads the files; `trainer.rankings` turns them into batch elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from fairlead.data.chat import NOT_READ, Chat, Prompt, messages_at, prompt_at, question, turns_of
from fairlead.data.foreign import native
from fairlead.data.lines import Line
from fairlead.types import Message

ALIKE = "identical `chosen` and `rejected`"
"""What an error says was received when a pair compares nothing."""
_ASSISTANT = "\n\nAssistant:"
"""Precedes the answer in transcripts such as those of Anthropic's HH dataset."""


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """Two answers of a record, one preferred to the other."""

    winner: str
    """The preferred answer."""
    loser: str
    """The other answer; differs from the preferred one."""
    file: str
    """Source file of the record; empty if it is derived from other data."""
    line: int
    """Line number, from 1."""
    keys: tuple[str, str]
    """Keys of winner and loser in the line."""
    margin: float = 0.0
    """By how much the winner is better, in the labeler's own unit; 0 if the record does not say."""

    def place(self, *keys: str) -> str:
        """Return file, line and keys as messages name them; empty if the record is of no line."""
        return f"{self.file}:{self.line} {' and '.join(f'`{key}`' for key in keys)}" if self.file else ""


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, one preferred to the other."""

    prompt: Prompt
    """May be empty text."""
    chosen: str
    """The preferred answer. May be empty: a policy may say nothing, and that may be better."""
    rejected: str
    """The other answer; differs from the preferred one."""
    margin: float = 0.0
    """By how much the preferred answer is better; 0 if the line has no number under `margin`."""
    file: str = field(default="", compare=False)
    """Source file; empty if the pair is derived from other data."""
    line: int = field(default=0, compare=False)
    """Line number, from 1."""

    @property
    def compared(self) -> tuple[ComparedPair, ...]:
        """The pair."""
        keys = ("chosen", "rejected")
        return (ComparedPair(self.chosen, self.rejected, self.file, self.line, keys, self.margin),)

    @property
    def split_key(self) -> str:
        """Text that decides the side of the split: the prompt, or the preferred answer if the prompt is
        empty.
        """
        return question(self.prompt) or self.chosen


@dataclass(frozen=True, slots=True)
class RankedResponses:
    """K answers to one prompt, ranked against one another; equal worths are ties."""

    prompt: Prompt
    """May be empty text."""
    texts: tuple[str, ...]
    """At least two."""
    worths: tuple[float, ...]
    """Worth of each text; higher is better. A rank r is a worth of −r."""
    tie_margin: float = 0.0
    """Worths closer than this are ties. Equal worths and equal texts always are."""
    has_scores: bool = False
    """Whether worths are scores, whose differences say by how much an answer is better."""
    file: str = field(default="", compare=False)
    """Source file."""
    line: int = field(default=0, compare=False)
    """Line number, from 1."""

    @property
    def compared(self) -> tuple[ComparedPair, ...]:
        """All pairs that are not ties."""
        keys = [f"responses[{index}].text" for index in range(len(self.texts))]
        margins = [[one - other if self.has_scores else 0.0 for other in self.worths] for one in self.worths]
        return tuple(
            ComparedPair(
                self.texts[i], self.texts[j], self.file, self.line, (keys[i], keys[j]), margins[i][j]
            )
            for i, j in self.pairs
        )

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(better, worse) indices of all pairs that are not ties."""
        indices = range(len(self.worths))
        return tuple((i, j) for i in indices for j in indices if self._beats(i, j))

    @property
    def num_ties(self) -> int:
        """Number of pairs that are ties."""
        return len(self.texts) * (len(self.texts) - 1) // 2 - len(self.pairs)

    @property
    def split_key(self) -> str:
        """Text that decides the side of the split: the prompt, or the first answer if the prompt is empty."""
        return question(self.prompt) or self.texts[0]

    def _beats(self, i: int, j: int) -> bool:
        one, other = self.worths[i], self.worths[j]
        return one > other and one - other >= self.tie_margin and self.texts[i] != self.texts[j]


Comparisons = Preference | RankedResponses
"""A record of one line."""


def comparisons(line: Line, *, tie_margin: float) -> Comparisons:
    """Return the record of a line: `responses` with ranks (1 is best) or scores (higher is better), or a
    pair.

    Args:
        line: the object.
        tie_margin: scores closer than this are ties; it does not apply to ranks.

    Raises:
        DataError: if a key is missing or has a value of another type.
    """
    line = native(line)
    if not line.has("responses"):
        return _preference(line)
    responses = line.objects("responses")
    if len(responses) < 2:
        raise line.error(got=f"{len(responses)} responses", allowed="at least 2 to compare")
    keys = [{key for key in ("rank", "score") if response.has(key)} for response in responses]
    if any(len(found) != 1 for found in keys) or len(set.union(*keys)) != 1:
        raise line.error(
            got="responses without a common measure", allowed="`rank` in each, or `score` in each"
        )
    key = keys[0].pop()
    for response in responses:
        response.refuse(NOT_READ)
    values = [response.number_at(key) for response in responses]
    return RankedResponses(
        prompt=prompt_at(line),
        texts=tuple(response.text("text") for response in responses),
        worths=tuple(-value if key == "rank" else value for value in values),
        tie_margin=tie_margin if key == "score" else 0.0,
        has_scores=key == "score",
        file=line.file,
        line=line.number,
    )


def _preference(line: Line) -> Preference:
    as_messages = [isinstance(line.values.get(key), list) for key in ("chosen", "rejected")]
    if all(as_messages):
        found = _of_messages(line)
    else:
        chosen, rejected = line.text("chosen"), line.text("rejected")
        if line.has("prompt"):
            found = Preference(prompt=prompt_at(line), chosen=chosen, rejected=rejected)
        else:
            end = _shared(chosen, rejected)
            found = Preference(prompt=chosen[:end], chosen=chosen[end:], rejected=rejected[end:])
    if found.chosen == found.rejected:
        raise line.error(got=ALIKE, allowed="two different answers")
    margin = line.values.get("margin")
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        margin = 0.0
    return replace(found, margin=float(margin), file=line.file, line=line.number)


def _shared(chosen: str, rejected: str) -> int:
    """Return where the prompt that both texts share ends: after `Assistant:`, or before the last common
    space.

    The space belongs to the answers, so that byte-pair tokens are the same as in the whole text.
    """
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = chosen[: next((place for place, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))]
    turn = shared.rfind(_ASSISTANT)
    if turn >= 0:
        return turn + len(_ASSISTANT)
    return next((place for place in reversed(range(len(shared))) if shared[place].isspace()), 0)


def _of_messages(line: Line) -> Preference:
    """Return a pair whose answers are messages; the prompt is part of them or under a key of its own."""
    chosen, rejected = messages_at(line, "chosen"), messages_at(line, "rejected")
    before: tuple[Message, ...] = ()
    if line.has("prompt") and chosen and chosen[0].role == "assistant":
        before = turns_of(prompt_at(line))
    elif isinstance(line.values.get("prompt"), list):
        asked = messages_at(line, "prompt")
        if chosen[: len(asked)] != asked:
            raise line.error(
                got="`prompt` that is not the beginning of `chosen`",
                allowed="the same messages, or answers without a prompt of their own",
            )
    chosen, rejected = (*before, *chosen), (*before, *rejected)
    for key, messages in (("chosen", chosen), ("rejected", rejected)):
        if not messages or messages[-1].role != "assistant":
            raise line.error(
                got=f"`{key}` that does not end with an assistant message", allowed="the answer last"
            )
    if len(chosen) < 2 or chosen[-2].role == "assistant" or chosen[:-1] != rejected[:-1]:
        raise line.error(
            got="`chosen` and `rejected` without a common prompt",
            allowed="the same messages before one assistant message",
        )
    prompt = Chat(chosen[:-1], file=line.file, line=line.number)
    return Preference(prompt=prompt, chosen=chosen[-1].content, rejected=rejected[-1].content)
