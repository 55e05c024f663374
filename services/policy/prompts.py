"""What a policy is asked, as ids: plain text, or turns of a conversation. Knows the tokenizer, no wire."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from fairlead.data.chat import ROLES, Chat, Prompt
from fairlead.data.encoding import encode_prompt
from fairlead.errors import InvalidInput
from fairlead.types import Message
from services.runtime.limits import check_text

FIELD = "conversation.messages"
"""Of the request, for errors."""
MAX_TURNS = 4_096
"""Turns of one conversation."""


def checked_chat(messages: Sequence[Message], *, max_bytes: int) -> Chat:
    """Turns that can be answered.

    Raises:
        InvalidInput: there are none, a role is unknown, all texts are too large together, or the last turn is
            the assistant's.
    """
    if not 1 <= len(messages) <= MAX_TURNS:
        raise InvalidInput(FIELD, got=f"{len(messages)} turns", allowed=f"from 1 to {MAX_TURNS}")
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            raise InvalidInput(
                FIELD, index=index, got=f"role {message.role[:40]!r}", allowed=f"one of {', '.join(ROLES)}"
            )
    check_text(FIELD, "".join(message.content for message in messages), max_bytes=max_bytes)
    if messages[-1].role == "assistant":
        raise InvalidInput(
            FIELD, index=len(messages) - 1, got="the assistant's turn", allowed="a last turn to answer"
        )
    return Chat(tuple(messages))


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Ids of a prompt.

    A policy that has learnt from plain prompts has no chat template: one turn of the user is a prompt to it.

    Raises:
        InvalidInput: turns that the template refuses, or others than that one where there is none.
    """
    if isinstance(prompt, str):
        return encode_prompt(tokenizer, prompt)
    if not tokenizer.chat_template:
        if [turn.role for turn in prompt.messages] != ["user"] or not prompt.messages[0].content:
            raise InvalidInput(
                FIELD,
                got=f"turns of {', '.join(turn.role for turn in prompt.messages[:8])}",
                allowed="one turn of the user, with a text: this policy has no chat template",
            )
        return encode_prompt(tokenizer, prompt.messages[0].content)
    try:
        return encode_prompt(tokenizer, prompt)
    except InvalidInput as error:
        raise InvalidInput(FIELD, got=error.got, allowed=error.allowed) from error
