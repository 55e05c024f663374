"""Encode text and conversations as token ids, in one place, since stages and services must agree on every id.

Plain prompts get the tokenizer's special tokens, conversations those that the chat template writes, responses
only EOS. Knows neither files nor models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fairlead.data.chat import Chat, Prompt
from fairlead.errors import DataError, InvalidInput, ModelLoadError
from fairlead.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Return the ids of a prompt; never empty, since a model must start from a token.

    Text gets the tokenizer's special tokens. Messages are rendered by its chat template up to the start of
    the assistant's turn; the template writes the special tokens, including BOS, and no others are added.

    Raises:
        ModelLoadError: if the text has no tokens and the tokenizer has neither BOS nor EOS to use instead.
        DataError, InvalidInput: see `render`.
    """
    if isinstance(prompt, Chat):
        ids = _ids(tokenizer, render(tokenizer, prompt, generate=True), special=False)
    else:
        ids = _ids(tokenizer, prompt, special=True)
    if ids:
        return ids
    for name in ("bos_token_id", "eos_token_id"):
        start = getattr(tokenizer, name, None)
        if isinstance(start, int):
            return [start]
    raise ModelLoadError("the tokenizer has neither a BOS nor an EOS token: an empty prompt has no token id")


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str, *, eos: bool) -> list[int]:
    """Return the ids of a response without special tokens, followed by EOS if `eos`.

    Raises:
        ModelLoadError: if `eos` and the tokenizer has no EOS token.
    """
    ids = _ids(tokenizer, text, special=False)
    if eos:
        end = tokenizer.eos_token_id
        if not isinstance(end, int):
            raise ModelLoadError("the tokenizer has no EOS token: answers trained with it would never end")
        ids.append(end)
    return ids


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answer: str
) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt, and of a complete answer that ends with EOS.

    Raises:
        ModelLoadError: if the tokenizer has no EOS token.
        DataError, InvalidInput: see `render`; or if the template changes the text before the answer.
    """
    if not isinstance(prompt, Chat):
        return encode_prompt(tokenizer, prompt), encode_response(tokenizer, answer, eos=True)
    before = render(tokenizer, prompt, generate=True)
    said = Chat((*prompt.messages, Message("assistant", answer)), file=prompt.file, line=prompt.line)
    whole = render(tokenizer, said, generate=False)
    if not whole.startswith(before):
        raise _refused(
            prompt, "an answer that changes the text before it in the chat template", "another chat template"
        )
    ids = _ids(tokenizer, before, special=False)
    return ids, _ended(encode_response(tokenizer, whole[len(before) :], eos=False), tokenizer)


def check_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]) -> None:
    """Render the prompts that are conversations, to detect one that cannot be rendered before any other work.

    Raises:
        DataError, InvalidInput: see `render`.
    """
    for prompt in prompts:
        if isinstance(prompt, Chat):
            render(tokenizer, prompt, generate=True)


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
        raise _refused(
            chat,
            "`messages`, and the tokenizer has no chat template",
            "a model whose tokenizer has one, or plain text",
        )
    turns = [{"role": message.role, "content": message.content} for message in chat.messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)
    except (TemplateError, ValueError, TypeError) as error:
        raise _refused(
            chat, f"`messages` that the chat template rejects: {error}", "other messages"
        ) from error
    assert isinstance(text, str)
    return text


def _ended(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Cut after EOS, since no policy samples the line break that templates write after it; add EOS if
    missing.
    """
    end = tokenizer.eos_token_id
    if end not in ids:
        return [*ids, *encode_response(tokenizer, "", eos=True)]
    return ids[: len(ids) - ids[::-1].index(end)]


def _refused(chat: Chat, got: str, allowed: str) -> InvalidInput:
    if chat.file:
        return DataError(chat.file, chat.line, got=got, allowed=allowed)
    return InvalidInput("messages", got=got, allowed=allowed)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    # verbose=False: the sequence limit is enforced by the caller, with a better message than a warning.
    return [int(token) for token in tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]]
