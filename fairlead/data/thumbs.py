"""Single answers with a thumb, for KTO: good or bad, without another answer to compare with; one JSON object
per line.

`records` reads the files.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fairlead.data.chat import Chat, Prompt, messages_at, prompt_at, question, turns_of
from fairlead.data.foreign import native
from fairlead.data.lines import Line


@dataclass(frozen=True, slots=True)
class Thumb:
    """An answer that somebody found good or bad."""

    prompt: Prompt
    """May be empty text."""
    answer: str
    """May be empty."""
    good: bool
    """Whether the thumb is up."""
    file: str = field(default="", compare=False)
    """Source file; empty if the thumb is derived from a ranking."""
    line: int = field(default=0, compare=False)
    """Line number, from 1."""

    @property
    def split_key(self) -> str:
        """Text that decides the side of the split: the prompt, or the answer if the prompt is empty."""
        return question(self.prompt) or self.answer

    @property
    def place(self) -> str:
        """File and line, as messages name them; empty if the thumb is of no line."""
        return f"{self.file}:{self.line}" if self.file else ""


def thumb(line: Line) -> Thumb:
    """Return the record of a line: `prompt` and `completion`, or `messages` that end with an answer, and a
    boolean `label`.

    Raises:
        DataError: if a key is missing or has a value of another type.
    """
    line = native(line)
    good = line.boolean("label")
    if line.has("messages") or isinstance(line.values.get("completion"), list):
        key = "messages" if line.has("messages") else "completion"
        before = () if key == "messages" else turns_of(prompt_at(line))
        messages = (*before, *messages_at(line, key))
        if len(messages) < 2 or messages[-1].role != "assistant" or messages[-2].role == "assistant":
            raise line.error(
                got=f"`{key}` that does not end with one assistant message",
                allowed="messages to answer, and the answer last",
            )
        asked = Chat(messages[:-1], file=line.file, line=line.number)
        return Thumb(asked, messages[-1].content, good, file=line.file, line=line.number)
    return Thumb(prompt_at(line), line.text("completion"), good, file=line.file, line=line.number)
