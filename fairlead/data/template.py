"""Render conversations with a tokenizer's chat template, and apply the settings of `[model]` to it.

The arguments of a template become a part of it: models are saved with their template, so everything that
reads a model renders alike. Knows neither token ids nor models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fairlead.config import RunConfig
from fairlead.config.data import TemplateArgument
from fairlead.data.chat import Chat
from fairlead.errors import ConfigError, DataError, InvalidInput
from fairlead.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BOUND = re.compile(r"\{# template_arguments #\}(\{% set .*? %\})*\n")
_TRIAL = "text of a trial"


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
            f"a model whose tokenizer has one{', model.chat_template' if chat.file else ''}, or plain text",
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


def apply_settings(tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> None:
    """Give the tokenizer of a model that a run starts from the template and the arguments of `[model]`.

    Raises:
        ConfigError: if the template cannot be read or rendered, or does not use an argument.
    """
    file, arguments = config.model.chat_template, config.model.template_arguments
    if not file and not arguments:
        return
    if file:
        path = config.data_path(file)
        try:
            template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError("model.chat_template", got=str(path), allowed=f"a file ({reason})") from error
    else:
        template = _own(tokenizer)
    tokenizer.chat_template = bind(template, arguments)
    where = "model.chat_template" if file else "model.template_arguments"
    trial = Chat((Message("user", _TRIAL),))
    try:
        found = render(tokenizer, trial, generate=True)
    except InvalidInput as error:
        raise ConfigError(where, got=error.got, allowed="a template that renders a user's message") from error
    if _TRIAL not in found:
        allowed = "a template that writes the `content` of messages"
        raise ConfigError(where, got=found[:200], allowed=allowed)


def bind(template: str, arguments: Mapping[str, TemplateArgument]) -> str:
    """Return a chat template that sets the arguments itself, in place of those that it sets already.

    Raises:
        ConfigError: if the template has no variable of that name.
    """
    bare = _BOUND.sub("", template, count=1)
    for name in arguments:
        if not re.search(rf"\b{name}\b", bare):
            raise ConfigError(
                f"model.template_arguments.{name}",
                got="a name that is not in the chat template",
                allowed="a variable of the template",
            )
    if not arguments:
        return bare
    # The line break ends with the block, so the template starts a line as before.
    sets = "".join(f"{{% set {name} = {_literal(value)} %}}" for name, value in arguments.items())
    return f"{{# template_arguments #}}{sets}\n{bare}"


def _own(tokenizer: PreTrainedTokenizerBase) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ConfigError(
            "model.template_arguments",
            got="a tokenizer without a chat template",
            allowed="a model with one, or model.chat_template",
        )
    return str(template)


def _literal(value: TemplateArgument) -> str:
    return json.dumps(value, ensure_ascii=False)
