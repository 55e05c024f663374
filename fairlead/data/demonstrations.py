"""Demonstrations for SFT: a prompt and its answer, a conversation, or plain text; one JSON object per line.

A file may mix the three. `records` reads the files; `encoding` turns them into tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fairlead.data.chat import Chat, Prompt, first_question, messages_at, prompt_at, turns_of
from fairlead.data.foreign import native
from fairlead.data.lines import Line
from fairlead.types import Message


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and a good answer to it."""

    prompt: str
    """May be empty."""
    completion: str
    """Never empty."""

    @property
    def turns(self) -> Iterator[tuple[Prompt, str]]:
        """(prompt, answer) pairs to learn; here one."""
        yield self.prompt, self.completion

    @property
    def split_key(self) -> str:
        """Text that decides the side of the split: the prompt, or the answer if the prompt is empty."""
        return self.prompt or self.completion


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation whose assistant messages are learnt."""

    messages: tuple[Message, ...]
    """All messages. At least one after the context is the assistant's; assistant messages are never blank."""
    context: int = 0
    """Number of leading messages that are context only: the prompt, where the line gives it separately."""
    unlearnt: frozenset[int] = frozenset()
    """Indices of assistant messages of weight 0, which are context as well."""
    file: str = field(default="", compare=False)
    """Source file, for errors that only the tokenizer can detect."""
    line: int = field(default=0, compare=False)
    """Line number, from 1."""

    @property
    def prompt(self) -> str:
        """Content of the first user message; empty if there is none."""
        return first_question(self.messages)

    @property
    def turns(self) -> Iterator[tuple[Prompt, str]]:
        """(prompt, answer) pairs to learn: one for every assistant message to learn."""
        for end, message in enumerate(self.messages):
            if message.role == "assistant" and end >= self.context and end not in self.unlearnt:
                yield Chat(self.messages[:end], file=self.file, line=self.line), message.content

    @property
    def split_key(self) -> str:
        """Text that decides the side of the split: the first user message, or else the first message."""
        return self.prompt or self.messages[0].content


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text whose every token is learnt, as in pretraining."""

    text: str
    """Never blank."""

    @property
    def prompt(self) -> str:
        """The text itself."""
        return self.text

    @property
    def split_key(self) -> str:
        """Text that decides the side of the split: the text itself."""
        return self.text


Example = Demonstration | Conversation | PlainText
"""A record of one line."""

FORMATS: dict[type, str] = {Demonstration: "completion", Conversation: "messages", PlainText: "text"}
"""Name of each format: the key that identifies it."""


def example(line: Line) -> Example:
    """Return the record of a line: `messages`, else `text`, else `prompt` and `completion`, as text or
    messages.

    Raises:
        DataError: if a key is missing or has a value of another type.
    """
    line = native(line)
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
    """Return a conversation whose messages under `key` are learnt."""
    messages = messages_at(line, key)
    for number, message in enumerate(messages):
        if message.role == "assistant" and not message.content.strip():
            raise line.error(got=f"blank `{key}[{number}].content`", allowed="an assistant message with text")
    answers = {number for number, message in enumerate(messages) if message.role == "assistant"}
    if not answers:
        raise line.error(got=f"`{key}` without an assistant message", allowed="at least one to learn from")
    turns = line.objects(key)
    skipped = {
        n for n in answers if turns[n].values.get("weight") is not None and not turns[n].binary("weight")
    }
    if skipped == answers:
        raise line.error(got=f"`{key}` with assistant messages of weight 0 only", allowed="one of weight 1")
    return Conversation(
        (*before, *messages),
        context=len(before),
        unlearnt=frozenset(len(before) + number for number in skipped),
        file=line.file,
        line=line.number,
    )
