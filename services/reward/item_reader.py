"""Items of requests → token ids, checked against the model's limits. Knows the tokenizer, but no weights.

Used by the local scorer and by the scorer that sends token ids to a Triton server.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fairlead.config.serving import RewardSection
from fairlead.data.chat import ROLES, Chat
from fairlead.data.control import reading_rules
from fairlead.data.encoding import (
    as_data,
    encode_answer,
    encode_conversation,
    encode_prompt,
    encode_response,
    tokenize,
)
from fairlead.errors import ConfigError, InvalidInput
from fairlead.types import Message, ModelInfo, ScoreItem, TextPair, TokenPair, WholeText
from services.runtime import limits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WHOLE = "items.whole_text"
_TOKENS = "items.tokens"
_PROMPT = "items.text.prompt"
_RESPONSE = "items.text.response"
_MESSAGES = "items.text.messages"


class EncodedItem(tuple[int, ...]):
    """Token ids of a prompt followed by its response: a tuple that knows where the response begins."""

    prompt_length: int
    """Number of prompt ids; 0 where it is unknown, as in some chat templates."""

    def __new__(cls, prompt: Iterable[int], response: Iterable[int]) -> EncodedItem:
        """Join the ids of a prompt and its response."""
        prompt_ids = tuple(prompt)
        encoded = super().__new__(cls, (*prompt_ids, *response))
        encoded.prompt_length = len(prompt_ids)
        return encoded


def prompt_length(sequence: tuple[int, ...]) -> int:
    """Return the number of ids before the response; 0 where it is unknown."""
    return sequence.prompt_length if isinstance(sequence, EncodedItem) else 0


def prompt_key(sequence: tuple[int, ...]) -> tuple[Hashable, int]:
    """Return a key shared by sequences of one prompt (None without a prompt) and the prompt's length."""
    length = prompt_length(sequence)
    return (sequence[:length] if length else None), length


@dataclass(frozen=True, slots=True)
class ReadingStyle:
    """The form of text that a reward model was trained on."""

    is_ours: bool
    """Trained by Fairlead: plain prompts as they are, and responses up to their EOS."""
    is_encoder: bool
    """An encoder that reads pairs of texts."""
    answer_end: object = None
    """`fairlead_answer_end` of the model's configuration; None if it has none."""


class ItemReader:
    """Encodes the items of requests. Blocking; safe for several threads."""

    def __init__(
        self,
        path: str,
        tokenizer: PreTrainedTokenizerBase,
        section: RewardSection,
        *,
        style: ReadingStyle,
        model: ModelInfo,
    ) -> None:
        """
        Args:
            path: path of the model, for errors.
            tokenizer: the model's tokenizer.
            section: limits, EOS, and whether a plain prompt becomes a turn of a conversation.
            style: the form of text that the model was trained on.
            model: vocabulary size and maximum sequence length.

        Raises:
            ConfigError: the section requires a chat template and the tokenizer has none.
        """
        if section.chat_template == "always" and not tokenizer.chat_template:
            raise ConfigError(
                "reward.chat_template", got="always", allowed=f"auto or never: {path!r} has no chat template"
            )
        foreign = bool(tokenizer.chat_template) and not style.is_ours
        self._wraps = section.chat_template == "always" or (section.chat_template == "auto" and foreign)
        self._tokenizer = tokenizer
        self._rules = reading_rules(tokenizer, trained_here=style.is_ours, saved=style.answer_end)
        # A tokenizer that was saved with padding or truncation changes its own state when it is called.
        self._tokenizing = threading.Lock()
        self._section = section
        self._style = style
        self._model = model

    def read(self, items: Sequence[ScoreItem]) -> list[tuple[int, ...]]:
        """Return the ids of prompt and response of each item, joined.

        Raises:
            InvalidInput: for the first item that cannot be scored.
        """
        limits.check_count("items", len(items), limit=self._section.batching.max_items)
        return [self._read(index, item) for index, item in enumerate(items)]

    def _read(self, index: int, item: ScoreItem) -> tuple[int, ...]:
        if isinstance(item, TextPair):
            with self._tokenizing:
                sequence = self._read_pair(index, item)
            field = "items.text"
        elif isinstance(item, WholeText):
            with self._tokenizing:
                sequence = self._read_whole(index, item)
            field = _WHOLE
        else:
            sequence = self._read_tokens(index, item)
            field = _TOKENS
        limit = self._model.max_sequence_tokens
        limits.check_sequence_tokens(field, len(sequence), limit=limit, index=index)
        return sequence

    def _read_tokens(self, index: int, item: TokenPair) -> EncodedItem:
        if self._style.is_encoder:
            raise InvalidInput(_TOKENS, index=index, got="ids", allowed="text: the model is an encoder")
        size = self._model.vocabulary_size
        limits.check_token_ids(
            f"{_TOKENS}.prompt_token_ids",
            item.prompt_token_ids,
            vocabulary_size=size,
            index=index,
            allow_empty=True,
        )
        limits.check_token_ids(
            f"{_TOKENS}.response_token_ids", item.response_token_ids, vocabulary_size=size, index=index
        )
        if not self._section.append_eos:
            return EncodedItem(item.prompt_token_ids, item.response_token_ids)
        return self._ended(item)

    def _ended(self, item: TokenPair) -> EncodedItem:
        """Return the ids with their end as the model reads it.

        An end that is appended takes the place of the last ids of an answer that fills the model's context.
        """
        ids = (*item.prompt_token_ids, *item.response_token_ids)
        start = len(item.prompt_token_ids)
        found = self._rules.finish(ids, start=start, append=item.append_end)
        excess = len(found) - self._model.max_sequence_tokens
        if 0 < excess <= len(found) - len(ids):
            found = self._rules.finish(ids[:-excess], start=start, append=True)
        return EncodedItem(found[:start], found[start:])

    def _read_pair(self, index: int, pair: TextPair) -> tuple[int, ...]:
        check_pair(index, pair, max_bytes=self._section.max_text_bytes)
        if not self._section.append_eos and not self._wraps and not pair.messages:
            # An empty response is scored at its EOS; without EOS there is no token to score.
            limits.check_not_empty(_RESPONSE, pair.response, index=index)
        turns = pair.messages
        if self._wraps and not turns:
            turns = (Message("user", pair.prompt),)
        if self._style.is_encoder and not self._tokenizer.chat_template and len(turns) < 2:
            prompt = turns[0].content if turns else pair.prompt
            texts = [as_data(self._tokenizer, text) for text in (prompt, pair.response)]
            return tuple(self._tokenizer(*texts, verbose=False)["input_ids"])
        if turns:
            return self._read_conversation(index, Chat(turns), pair.response)
        prompt_ids = encode_prompt(self._tokenizer, pair.prompt)
        response_ids = encode_response(self._tokenizer, pair.response, eos=self._section.append_eos)
        return EncodedItem(prompt_ids, response_ids)

    def _read_conversation(self, index: int, prompt: Chat, response: str) -> tuple[int, ...]:
        try:
            if self._style.is_ours:
                return EncodedItem(*encode_answer(self._tokenizer, prompt, response, rules=self._rules))
            # Up to the end of what the template writes: reward models on the hub are trained to score there.
            whole = Chat((*prompt.messages, Message("assistant", response)))
            return tuple(encode_conversation(self._tokenizer, whole))
        except InvalidInput as error:
            raise InvalidInput(_MESSAGES, index=index, got=error.got, allowed=error.allowed) from error

    def _read_whole(self, index: int, whole: WholeText) -> tuple[int, ...]:
        """Return the ids of a text that holds prompt and response, as rendered by the chat template or plain.

        The end of its answer (if configured; encoders have their own) is that of every other item.
        """
        limits.check_text(_WHOLE, whole.text, max_bytes=self._section.max_text_bytes, index=index)
        ids = self._rules.whole_ids(whole.text, partial(tokenize, self._tokenizer))
        if self._section.append_eos and not self._style.is_encoder:
            ids = self._rules.finish(ids, append=True)
        if not ids:
            raise InvalidInput(_WHOLE, index=index, got="a text without tokens", allowed="at least one token")
        return ids


def check_pair(index: int, pair: TextPair, *, max_bytes: int) -> None:
    """Check the sizes of the texts of a pair, and the roles of its messages.

    Raises:
        InvalidInput: names the field of the item at this index.
    """
    limits.check_text(_PROMPT, pair.prompt, max_bytes=max_bytes, index=index)
    limits.check_text(_RESPONSE, pair.response, max_bytes=max_bytes, index=index)
    limits.check_text(_MESSAGES, "".join(m.content for m in pair.messages), max_bytes=max_bytes, index=index)
    for message in pair.messages:
        if message.role not in ROLES:
            raise InvalidInput(
                _MESSAGES, index=index, got=f"role {message.role!r}", allowed=f"one of {', '.join(ROLES)}"
            )
