"""Turns of a conversation, and prompts that are made of them: what only a chat template can turn into text.

Under demonstrations, comparisons and prompts alike; `encoding` renders them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fairlead.data.lines import Line
from fairlead.types import Message

ROLES = ("system", "user", "assistant")
"""Who may speak in a conversation."""


@dataclass(frozen=True, slots=True)
class Chat:
    """What was said before an answer."""

    messages: tuple[Message, ...]
    """At least one; the last is not the assistant's where it is a prompt."""
    file: str = field(default="", compare=False)
    """Where it stands, for errors that only the tokenizer can find."""
    line: int = field(default=0, compare=False)
    """From 1."""

    def __str__(self) -> str:
        """For people."""
        return "\n".join(f"{message.role}: {message.content}" for message in self.messages)


Prompt = str | Chat
"""Plain text, or turns that the chat template of whoever reads them turns into text."""


def question(prompt: Prompt) -> str:
    """What decides the side of the split: plain text as it is, of a conversation what its user says first."""
    return prompt if isinstance(prompt, str) else first_question(prompt.messages)


def first_question(messages: tuple[Message, ...]) -> str:
    """What the user said first; empty if no user spoke."""
    return next((message.content for message in messages if message.role == "user"), "")


def turns_of(prompt: Prompt) -> tuple[Message, ...]:
    """A prompt as turns; plain text is what a user says, and empty text is no turn."""
    if isinstance(prompt, Chat):
        return prompt.messages
    return (Message("user", prompt),) if prompt else ()


def prompt_at(line: Line, key: str = "prompt", *, empty: bool = True) -> Prompt:
    """The prompt under a key: a string, or an array of messages that ends before an answer.

    Raises:
        DataError: it is absent, anything else, blank where that is not allowed, or ends with the assistant.
    """
    if not isinstance(line.values.get(key), list):
        return line.text(key, empty=empty)
    messages = messages_at(line, key)
    if not messages:
        raise line.error(got=f"`{key}` without a message", allowed="at least one turn to answer")
    if messages[-1].role == "assistant":
        raise line.error(got=f"`{key}` that ends with the assistant", allowed="a last turn to answer")
    return Chat(messages, file=line.file, line=line.number)


def messages_at(line: Line, key: str) -> tuple[Message, ...]:
    """The messages under a key.

    Raises:
        DataError: it is absent, no array of `{"role", "content"}` objects, or a role is not one of ROLES.
    """
    messages = tuple(
        Message(role=turn.text("role"), content=turn.text("content")) for turn in line.objects(key)
    )
    for number, message in enumerate(messages):
        if message.role not in ROLES:
            raise line.error(
                got=f"`{key}[{number}].role` = {message.role!r}", allowed=f"one of {', '.join(ROLES)}"
            )
    return messages
