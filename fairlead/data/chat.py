"""Conversations: messages with roles, and prompts made of them, which a chat template turns into text.

Used by demonstrations, comparisons and prompts; `encoding` renders them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fairlead.data.foreign import native
from fairlead.data.lines import Line
from fairlead.types import Message

ROLES = ("system", "user", "assistant")
"""Roles that a message may have."""
NOT_READ = ("tool_calls", "function_call", "reasoning", "reasoning_content", "thinking")
"""Keys of a message whose text a template may write; not read, so a message that has some is refused."""


@dataclass(frozen=True, slots=True)
class Chat:
    """The messages before an answer."""

    messages: tuple[Message, ...]
    """At least one; the last is not the assistant's where it is a prompt."""
    file: str = field(default="", compare=False)
    """Source file, for errors that only the tokenizer can detect."""
    line: int = field(default=0, compare=False)
    """Line number, from 1."""

    def __str__(self) -> str:
        """Return the turns as lines of `role: content`."""
        return "\n".join(f"{message.role}: {message.content}" for message in self.messages)


Prompt = str | Chat
"""Plain text, or messages that the chat template of the reading model renders."""


def question(prompt: Prompt) -> str:
    """Return the text that decides the side of the split: plain text itself, or the first user message."""
    return prompt if isinstance(prompt, str) else first_question(prompt.messages)


def first_question(messages: tuple[Message, ...]) -> str:
    """Return the content of the first user message; empty if there is none."""
    return next((message.content for message in messages if message.role == "user"), "")


def turns_of(prompt: Prompt) -> tuple[Message, ...]:
    """Return a prompt as messages. Plain text becomes a user message; empty text becomes no message."""
    if isinstance(prompt, Chat):
        return prompt.messages
    return (Message("user", prompt),) if prompt else ()


def prompt_at(line: Line, key: str = "prompt", *, empty: bool = True) -> Prompt:
    """Return the prompt under a key: a string, or an array of messages that ends before an answer.

    Raises:
        DataError: if it is absent, of another type, blank where that is not allowed, or ends with the
            assistant.
    """
    if not isinstance(line.values.get(key), list):
        return line.text(key, empty=empty)
    messages = messages_at(line, key)
    if not messages:
        raise line.error(got=f"`{key}` without a message", allowed="at least one message to answer")
    if messages[-1].role == "assistant":
        raise line.error(got=f"`{key}` that ends with an assistant message", allowed="a user message last")
    return Chat(messages, file=line.file, line=line.number)


def messages_at(line: Line, key: str) -> tuple[Message, ...]:
    """Return the messages under a key.

    Raises:
        DataError: if it is absent, not an array of `{"role", "content"}` objects, a role is not in ROLES, or
            a message has tool calls or reasoning, which are not read.
    """
    turns = line.objects(key)
    for turn in turns:
        turn.refuse(NOT_READ)
    messages = tuple(Message(role=turn.text("role"), content=turn.text("content")) for turn in turns)
    for number, message in enumerate(messages):
        if message.role not in ROLES:
            raise line.error(
                got=f"`{key}[{number}].role` = {message.role!r}", allowed=f"one of {', '.join(ROLES)}"
            )
    return messages


def prompt(line: Line) -> Prompt:
    """Return the prompt of a line: `prompt` as text or messages, else `messages`.

    If `messages` end with an assistant message, as demonstrations do, that message is left out.

    Raises:
        DataError: if a key is missing or has a value of another type, or there is nothing to answer.
    """
    line = native(line)
    if line.has("prompt") or not line.has("messages"):
        return prompt_at(line, empty=False)
    messages = messages_at(line, "messages")
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1].role == "assistant":
        raise line.error(
            got="`messages` without a message to answer", allowed="a user message before the answer"
        )
    return Chat(messages, file=line.file, line=line.number)
