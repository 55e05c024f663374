"""Extract the items of a line that a reward model can score, and add the scores to the line.

Accepts `{"prompt", "response" | "completion"}`, `{"prompt", "responses"}`, pairs
of `chosen` and `rejected`, conversations that end with an answer, whole texts.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fairlead.data.chat import Chat, Prompt, messages_at, prompt_at, turns_of
from fairlead.data.comparisons import Preference, comparisons
from fairlead.data.foreign import native
from fairlead.data.lines import Line
from fairlead.types import Message, ScoreItem, TextPair, WholeText

_ALLOWED = (
    "`prompt` with `response`, `responses` or `completion`; `chosen` and `rejected`; `messages` that end "
    "with an assistant message; or `text`"
)


class Shape(enum.Enum):
    """Whether a line has one answer, several, or a pair with a preferred one."""

    ONE = "one"
    SEVERAL = "several"
    PAIR = "pair"


@dataclass(frozen=True, slots=True)
class Scorable:
    """A line and its items to score."""

    line: Line
    """The line."""
    items: tuple[ScoreItem, ...]
    """In the order of the responses; the chosen one of a pair first."""
    shape: Shape
    """Decides the keys of the scores."""

    @property
    def num_characters(self) -> int:
        """Approximate size of the request."""
        return sum(_size(item) for item in self.items)

    def with_scores(self, scores: Sequence[float]) -> dict[str, object]:
        """Return the keys to add to the line for one score, several, or a pair."""
        match self.shape:
            case Shape.ONE:
                return {"score": scores[0]}
            case Shape.SEVERAL:
                return {"scores": list(scores), "best": scores.index(max(scores))}
            case Shape.PAIR:
                chosen, rejected = scores
                return {"score_chosen": chosen, "score_rejected": rejected, "margin": chosen - rejected}


ADDED = frozenset(
    {
        *("score", "scores", "best", "score_chosen", "score_rejected", "margin"),
        *("model_version", "calibration_temperature"),
    }
)
"""Keys that scoring adds to a line."""


def scorable(line: Line) -> Scorable:
    """Return the items of a line to score.

    Raises:
        DataError: if the line has nothing that can be scored.
    """
    found = native(line)
    if found is not line:
        return replace(_scorable(found), line=line)
    return _scorable(line)


def _scorable(line: Line) -> Scorable:
    if line.has("chosen") or line.has("rejected"):
        if line.has("responses"):
            raise line.error(got=f"the keys {', '.join(line.keys or line.values)}", allowed=_ALLOWED)
        pair = comparisons(line, tie_margin=0.0)
        assert isinstance(pair, Preference)
        return Scorable(line, _items(pair.prompt, [pair.chosen, pair.rejected]), Shape.PAIR)
    asked = [key for key in ("response", "responses", "completion") if line.has(key)]
    if len(asked) > 1:
        raise line.error(got=f"the keys {', '.join(line.values)}", allowed=_ALLOWED)
    if asked == ["responses"]:
        return Scorable(line, _items(prompt_at(line), _responses(line)), Shape.SEVERAL)
    if asked:
        prompt, answer = _answer(line, asked[0])
        return Scorable(line, _items(prompt, [answer]), Shape.ONE)
    if line.has("messages"):
        prompt, answer = _last(line, "messages", messages_at(line, "messages"))
        return Scorable(line, _items(prompt, [answer]), Shape.ONE)
    if line.has("text") and not line.has("prompt"):
        return Scorable(line, (WholeText(line.text("text", empty=False)),), Shape.ONE)
    raise line.error(got=f"the keys {', '.join(line.keys or line.values)}", allowed=_ALLOWED)


def _answer(line: Line, key: str) -> tuple[Prompt, str]:
    prompt = prompt_at(line)
    if not isinstance(line.values[key], list):
        return prompt, line.text(key)
    return _last(line, key, (*turns_of(prompt), *messages_at(line, key)))


def _last(line: Line, key: str, turns: tuple[Message, ...]) -> tuple[Prompt, str]:
    """Split a conversation into the messages before the last answer, and that answer."""
    if len(turns) < 2 or turns[-1].role != "assistant" or turns[-2].role == "assistant":
        raise line.error(
            got=f"`{key}` that does not end with an answer",
            allowed="a message, and the assistant's answer to it",
        )
    return Chat(turns[:-1], file=line.file, line=line.number), turns[-1].content


def _responses(line: Line) -> list[str]:
    """Return texts, or the `text` of objects, as `fairlead generate` and labeling pages write them."""
    found = line.values["responses"]
    if not isinstance(found, list) or not found:
        raise line.error(got="`responses` without a response", allowed="an array of at least one text")
    if not isinstance(found[0], str):
        return [response.text("text") for response in line.objects("responses")]
    # As a line of its own, so that errors name the place of a response.
    places = {f"responses[{index}]": response for index, response in enumerate(found)}
    texts = replace(line, values=places)
    return [texts.text(place) for place in places]


def _items(prompt: Prompt, responses: Sequence[str]) -> tuple[ScoreItem, ...]:
    if isinstance(prompt, Chat):
        return tuple(TextPair("", response, prompt.messages) for response in responses)
    return tuple(TextPair(prompt, response) for response in responses)


def _size(item: ScoreItem) -> int:
    if isinstance(item, WholeText):
        return len(item.text)
    assert isinstance(item, TextPair)
    turns = sum(len(message.content) for message in item.messages)
    return turns + len(item.prompt) + len(item.response)
