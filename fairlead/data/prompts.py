"""What PPO asks: plain prompts, or conversations up to the turn that is to be answered; one object a line.

`records` reads the files; the trainer turns prompts into tokens.
"""

from __future__ import annotations

from fairlead.data.chat import Chat, Prompt, messages_at, prompt_at
from fairlead.data.lines import Line


def prompt(line: Line) -> Prompt:
    """The prompt of a line: `prompt` as text or messages, else `messages`.

    Of `messages` that end with the assistant, as demonstrations do, that last answer is left out.

    Raises:
        DataError: a key is missing or holds something else, or there is nothing to answer.
    """
    if line.has("prompt") or not line.has("messages"):
        return prompt_at(line, empty=False)
    messages = messages_at(line, "messages")
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1].role == "assistant":
        raise line.error(got="`messages` without a turn to answer", allowed="a user's turn before the answer")
    return Chat(messages, file=line.file, line=line.number)
