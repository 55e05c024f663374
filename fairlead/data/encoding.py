"""Text and turns to token ids, the one way of it: stages and services must agree on every id.

Plain prompts get the tokenizer's special tokens, conversations those that the chat template writes, responses
none but the end. Nothing here knows files or models.
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
    """Ids of a prompt; never empty, as a model has to start from something.

    Text gets the tokenizer's special tokens. Turns are rendered by its chat template, up to where the
    assistant begins; the template has written the special tokens, BOS among them, and none are added.

    Raises:
        ModelLoadError: the text has no tokens and the tokenizer neither BOS nor EOS to stand for it.
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
    """Ids of a response without special tokens, and the EOS id behind them if asked for.

    Raises:
        ModelLoadError: EOS is asked for and the tokenizer has none.
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
    """Ids of a prompt, and of a whole answer to it with EOS at its end.

    Raises:
        ModelLoadError: the tokenizer has no EOS token.
        DataError, InvalidInput: see `render`; or the template changes what stands before the answer.
    """
    if not isinstance(prompt, Chat):
        return encode_prompt(tokenizer, prompt), encode_response(tokenizer, answer, eos=True)
    before = render(tokenizer, prompt, generate=True)
    said = Chat((*prompt.messages, Message("assistant", answer)), file=prompt.file, line=prompt.line)
    whole = render(tokenizer, said, generate=False)
    if not whole.startswith(before):
        raise _refused(prompt, "a turn that changes what stands before it", "another chat template")
    ids = _ids(tokenizer, before, special=False)
    return ids, _ended(encode_response(tokenizer, whole[len(before) :], eos=False), tokenizer)


def check_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]) -> None:
    """Renders those that are conversations, so that one that cannot be is found before any work is done.

    Raises:
        DataError, InvalidInput: see `render`.
    """
    for prompt in prompts:
        if isinstance(prompt, Chat):
            render(tokenizer, prompt, generate=True)


def render(tokenizer: PreTrainedTokenizerBase, chat: Chat, *, generate: bool) -> str:
    """Turns as the tokenizer's chat template writes them.

    Args:
        tokenizer: has the template.
        chat: the turns.
        generate: write up to where the assistant begins to speak.

    Raises:
        DataError: there is no template, or it refuses the turns; names the line that they came from.
        InvalidInput: the same of turns that came from no file.
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
        raise _refused(chat, f"`messages` that the chat template refuses: {error}", "other turns") from error
    assert isinstance(text, str)
    return text


def _ended(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Up to its EOS, as no policy will sample the line break that templates put behind; added if missing."""
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
