"""What SFT learns from: a prompt and its answer, a conversation, or plain text; one JSON object a line.

A file may mix the three. `records` reads the files; `encoding` turns them into tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fairlead.data.chat import Chat, Prompt, first_question, messages_at, prompt_at, turns_of
from fairlead.data.lines import Line
from fairlead.types import Message


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and the answer that a person would like."""

    prompt: str
    """May be empty."""
    completion: str
    """Never empty."""

    @property
    def turns(self) -> Iterator[tuple[Prompt, str]]:
        """What is learnt, as prompt and answer: one of them."""
        yield self.prompt, self.completion

    @property
    def split_key(self) -> str:
        """Decides the side of the split: the prompt, or the answer to none."""
        return self.prompt or self.completion


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of which the assistant's are learnt."""

    messages: tuple[Message, ...]
    """At least one of those that are learnt is the assistant's; it always says something."""
    context: int = 0
    """Number of messages at the beginning that are only read: the prompt, where a line tells it apart."""
    file: str = field(default="", compare=False)
    """Where it stands, for errors that only the tokenizer can find."""
    line: int = field(default=0, compare=False)
    """From 1."""

    @property
    def prompt(self) -> str:
        """What the user said first; empty if no user spoke."""
        return first_question(self.messages)

    @property
    def turns(self) -> Iterator[tuple[Prompt, str]]:
        """What is learnt, as prompt and answer: every turn of the assistant behind the context."""
        for end, message in enumerate(self.messages):
            if message.role == "assistant" and end >= self.context:
                yield Chat(self.messages[:end], file=self.file, line=self.line), message.content

    @property
    def split_key(self) -> str:
        """Decides the side of the split: what the user said first, or else the first turn."""
        return self.prompt or self.messages[0].content


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text of which every token is learnt, as in pre-training."""

    text: str
    """Never blank."""

    @property
    def prompt(self) -> str:
        """The text itself."""
        return self.text

    @property
    def split_key(self) -> str:
        """Decides the side of the split: the text itself."""
        return self.text


Example = Demonstration | Conversation | PlainText
"""What one line may hold."""

FORMATS: dict[type, str] = {Demonstration: "completion", Conversation: "messages", PlainText: "text"}
"""Name of each format: the key that tells it."""


def example(line: Line) -> Example:
    """The record of a line: `messages`, else `text`, else `prompt` and `completion`, plain or as messages.

    Raises:
        DataError: a key is missing or holds something else.
    """
    if line.has("messages"):
        return _conversation(line, (), "messages")
    if line.has("text") and not line.has("completion"):
        return PlainText(line.text("text", empty=False))
    if isinstance(line.values.get("completion"), list):
        return _conversation(line, turns_of(prompt_at(line)), "completion")
    prompt = prompt_at(line)
    completion = line.text("completion", empty=False)
    if isinstance(prompt, str):
        return Demonstration(prompt=prompt, completion=completion)
    messages = (*prompt.messages, Message("assistant", completion))
    return Conversation(messages, context=len(prompt.messages), file=line.file, line=line.number)


def _conversation(line: Line, before: tuple[Message, ...], key: str) -> Conversation:
    """A conversation whose turns under `key` are learnt."""
    messages = messages_at(line, key)
    for number, message in enumerate(messages):
        if message.role == "assistant" and not message.content.strip():
            raise line.error(
                got=f"`{key}[{number}].content` without a word", allowed="an assistant that says something"
            )
    if not any(message.role == "assistant" for message in messages):
        raise line.error(got=f"`{key}` without an assistant", allowed="at least one turn to learn from")
    return Conversation((*before, *messages), context=len(before), file=line.file, line=line.number)
