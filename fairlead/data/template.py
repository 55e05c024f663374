"""Render conversations with a tokenizer's chat template. Knows neither token ids nor models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairlead.data.chat import Chat
from fairlead.errors import DataError, InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(tokenizer: PreTrainedTokenizerBase, chat: Chat, *, generate: bool) -> str:
    """Render messages with the tokenizer's chat template.

    Args:
        tokenizer: has the template.
        chat: the messages.
        generate: end with the start of the assistant's turn.

    Raises:
        DataError: if there is no template, or it rejects the messages; names the line that they come from.
        InvalidInput: the same for messages that do not come from a file.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise refused(
            chat,
            "`messages`, and the tokenizer has no chat template",
            "a model whose tokenizer has one, or plain text",
        )
    turns = [{"role": message.role, "content": message.content} for message in chat.messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)
    except (TemplateError, ValueError, TypeError) as error:
        raise refused(
            chat, f"`messages` that the chat template rejects: {error}", "other messages"
        ) from error
    assert isinstance(text, str)
    return text


def refused(chat: Chat, got: str, allowed: str) -> InvalidInput:
    """Return the error for messages that cannot be rendered; it names the line that they come from."""
    if chat.file:
        return DataError(chat.file, chat.line, got=got, allowed=allowed)
    return InvalidInput("messages", got=got, allowed=allowed)
