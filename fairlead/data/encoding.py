"""Encode text and conversations as token ids, in one place, since stages and services must agree on every id.

Plain prompts get the tokenizer's special tokens, conversations those that the chat template writes, responses
only their end. Prompts, messages and responses are data: a control token in them is encoded as ordinary text.
Knows neither files nor models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fairlead.data.chat import Chat, Prompt
from fairlead.data.control import control_tokens, reading_rules
from fairlead.data.reading import CUT, ReadingRules, cut
from fairlead.data.template import refused, render
from fairlead.errors import ModelLoadError
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
        ids = _ids(tokenizer, render(tokenizer, _as_data(tokenizer, prompt), generate=True))
    else:
        text = _text_as_data(tokenizer, prompt)
        before, after = control_tokens(tokenizer).affixes
        ids = [*before, *_ids(tokenizer, text), *after] if CUT in text else tokenize(tokenizer, text)
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
    ids = _ids(tokenizer, _text_as_data(tokenizer, text))
    if eos:
        end = tokenizer.eos_token_id
        if not isinstance(end, int):
            raise ModelLoadError("the tokenizer has no EOS token: answers trained with it would never end")
        ids.append(end)
    return ids


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answer: str, *, rules: ReadingRules | None = None
) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt, and of a complete answer with its end.

    Args:
        tokenizer: encodes both.
        prompt: what is answered.
        answer: the text of the answer.
        rules: how answers end for a reward model; None for everything that Fairlead trains: with the token at
            which the policy stops.

    Raises:
        ModelLoadError: if the tokenizer has no EOS token.
        DataError, InvalidInput: see `render`; or if the template changes the text before the answer.
    """
    if not isinstance(prompt, Chat):
        return encode_prompt(tokenizer, prompt), encode_response(tokenizer, answer, eos=True)
    asked = _as_data(tokenizer, prompt)
    before = render(tokenizer, asked, generate=True)
    said = Message("assistant", _text_as_data(tokenizer, answer))
    whole = render(
        tokenizer, Chat((*asked.messages, said), file=prompt.file, line=prompt.line), generate=False
    )
    if not whole.startswith(before):
        raise refused(
            prompt, "an answer that changes the text before it in the chat template", "another chat template"
        )
    rules = rules or reading_rules(tokenizer, trained_here=True)
    if not rules.conversation_end:
        encode_response(tokenizer, "", eos=True)
    ids = _ids(tokenizer, before)
    finished = rules.finish([*ids, *_ids(tokenizer, whole[len(before) :])], start=len(ids), append=True)
    return ids, list(finished[len(ids) :])


def encode_conversation(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> list[int]:
    """Return the ids of all that the chat template writes for a conversation with its last answer.

    Raises:
        DataError, InvalidInput: see `render`.
    """
    return _ids(tokenizer, render(tokenizer, _as_data(tokenizer, chat), generate=False))


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = True) -> list[int]:
    """Return the ids of a text, with the tokenizer's special tokens if `special`.

    A control token in the text is read as such, so the text of a caller goes through `encode_prompt`,
    `encode_response` or `ReadingRules.whole_ids`.
    """
    # verbose=False: the sequence limit is enforced by the caller, with a better message than a warning.
    return [int(token) for token in tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]]


def as_data(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a text of a caller with a space within every control token, for tokenizers that encode pairs."""
    return _text_as_data(tokenizer, text).replace(CUT, " ")


def check_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]) -> None:
    """Render the prompts that are conversations, to detect one that cannot be rendered before any other work.

    Raises:
        DataError, InvalidInput: see `render`.
    """
    for prompt in prompts:
        if isinstance(prompt, Chat):
            render(tokenizer, prompt, generate=True)


def _as_data(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> Chat:
    """Return a conversation whose contents have no control token in one piece."""
    names = control_tokens(tokenizer).names
    messages = tuple(Message(message.role, cut(message.content, names)) for message in chat.messages)
    return Chat(messages, file=chat.file, line=chat.line)


def _text_as_data(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    return cut(text, control_tokens(tokenizer).names)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text without further special tokens; no token spans a CUT."""
    return [token for part in text.split(CUT) for token in tokenize(tokenizer, part, special=False)]
