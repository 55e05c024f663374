"""What SFT learns from: a prompt and its answer, a conversation, or plain text; one JSON object a line.

A file may mix the three. `records` reads the files; `trainer.demonstrations` turns records into tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fairlead.data.lines import Line

ROLES = ("system", "user", "assistant")
"""Who may speak in a conversation."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and the answer that a person would like."""

    prompt: str
    """May be empty."""
    completion: str
    """Never empty."""


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a conversation."""

    role: str
    """One of ROLES."""
    content: str
    """What was said; never empty for the assistant."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of which the assistant's are learnt."""

    messages: tuple[Message, ...]
    """At least one of them is the assistant's."""
    file: str = field(default="", compare=False)
    """Where it stands, for errors that only the tokenizer can find."""
    line: int = field(default=0, compare=False)
    """From 1."""

    @property
    def prompt(self) -> str:
        """What the user said first; decides the side of the split, as the prompt of a pair does."""
        return next((message.content for message in self.messages if message.role == "user"), "")


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text of which every token is learnt, as in pre-training."""

    text: str
    """Never blank."""

    @property
    def prompt(self) -> str:
        """The text itself; decides the side of the split."""
        return self.text


Example = Demonstration | Conversation | PlainText
"""What one line may hold."""

FORMATS: dict[type, str] = {Demonstration: "completion", Conversation: "messages", PlainText: "text"}
"""Name of each format: the key that tells it."""


def example(line: Line) -> Example:
    """The record of a line: `messages`, else `text`, else `prompt` and `completion`.

    Raises:
        DataError: a key is missing or holds something else.
    """
    if "messages" in line.values:
        return _conversation(line)
    if "text" in line.values and "completion" not in line.values:
        return PlainText(line.text("text", empty=False))
    return Demonstration(prompt=line.text("prompt"), completion=line.text("completion", empty=False))


def _conversation(line: Line) -> Conversation:
    messages = tuple(
        Message(role=turn.text("role"), content=turn.text("content")) for turn in line.objects("messages")
    )
    for number, message in enumerate(messages):
        if message.role not in ROLES:
            raise line.error(
                got=f"`messages[{number}].role` = {message.role!r}", allowed=f"one of {', '.join(ROLES)}"
            )
        if message.role == "assistant" and not message.content.strip():
            raise line.error(
                got=f"`messages[{number}].content` without a word", allowed="an assistant that says something"
            )
    if not any(message.role == "assistant" for message in messages):
        raise line.error(got="`messages` without an assistant", allowed="at least one turn to learn from")
    return Conversation(messages, file=line.file, line=line.number)
