"""Texts as the reward model reads them: plain, or in its chat template. Knows the tokenizer, and no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fairlead.config.serving import RewardSection
from fairlead.data.chat import ROLES, Chat
from fairlead.data.encoding import encode_answer, encode_prompt, encode_response, render
from fairlead.errors import ConfigError, InvalidInput
from fairlead.types import Message, TextPair, WholeText
from services.reward.encoded import Encoded
from services.runtime import limits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WHOLE = "items.whole_text"
_PROMPT, _RESPONSE, _MESSAGES = (f"items.text.{name}" for name in ("prompt", "response", "messages"))


class Habits(Protocol):
    """How a reward model has learnt to read."""

    @property
    def is_ours(self) -> bool:
        """Whether Fairlead has trained it."""

    @property
    def is_encoder(self) -> bool:
        """Whether it reads pairs of texts."""


class TextReader:
    """Prompt and response as text → ids; not for several threads at a time."""

    def __init__(
        self, path: str, tokenizer: PreTrainedTokenizerBase, section: RewardSection, *, model: Habits
    ) -> None:
        """
        Args:
            path: of the model, for errors.
            tokenizer: the model's.
            section: limits, EOS, and whether plain prompts are turns of a conversation.
            model: says how it has learnt to read. One that Fairlead has trained knows answers up to their
                EOS and plain prompts as they are; an encoder, pairs of texts.

        Raises:
            ConfigError: the chat template is asked for and there is none.
        """
        if section.chat_template == "always" and not tokenizer.chat_template:
            raise ConfigError(
                "reward.chat_template", got="always", allowed=f"auto or never: {path!r} has no chat template"
            )
        foreign = bool(tokenizer.chat_template) and not model.is_ours
        self._wraps = section.chat_template == "always" or (section.chat_template == "auto" and foreign)
        self._tokenizer, self._section = tokenizer, section
        self._is_ours, self._is_encoder = model.is_ours, model.is_encoder

    def read(self, index: int, pair: TextPair) -> tuple[int, ...]:
        """Ids of prompt and response together.

        Args:
            index: of the pair in its request, for errors.
            pair: the texts.

        Raises:
            InvalidInput: a text is too large, a role is unknown, or the chat template refuses the turns.
        """
        self._check(index, pair)
        turns = pair.messages
        if self._wraps and not turns:
            turns = (Message("user", pair.prompt),)
        if self._is_encoder and not self._tokenizer.chat_template and len(turns) < 2:
            prompt = turns[0].content if turns else pair.prompt
            return tuple(self._tokenizer(prompt, pair.response, verbose=False)["input_ids"])
        if turns:
            return self._conversation(index, Chat(turns), pair.response)
        before = encode_prompt(self._tokenizer, pair.prompt)
        answer = encode_response(self._tokenizer, pair.response, eos=self._section.append_eos)
        return Encoded(before, answer)

    def read_whole(self, index: int, whole: WholeText) -> tuple[int, ...]:
        """Ids of a text that holds prompt and response, read as it is.

        The tokenizer's special tokens are added as to any text, but no second BOS, and EOS (if configured;
        encoders have their own end) unless the text ends with it.

        Args:
            index: of the text in its request, for errors.
            whole: the text.

        Raises:
            InvalidInput: it is too large, or nothing is left to be read.
        """
        limits.check_text(_WHOLE, whole.text, max_bytes=self._section.max_text_bytes, index=index)
        tokenizer = self._tokenizer
        ids = [int(token) for token in tokenizer(whole.text, verbose=False)["input_ids"]]
        if ids[:2] == [tokenizer.bos_token_id] * 2:
            ids = ids[1:]
        end = tokenizer.eos_token
        if self._section.append_eos and not self._is_encoder and not _ends_with(whole.text, end):
            ids += encode_response(tokenizer, "", eos=True)
        if not ids:
            raise InvalidInput(_WHOLE, index=index, got="a text without tokens", allowed="at least one token")
        return tuple(ids)

    def _conversation(self, index: int, asked: Chat, response: str) -> tuple[int, ...]:
        try:
            if self._is_ours:
                prompt, answer = encode_answer(self._tokenizer, asked, response)
                return Encoded(prompt, answer)
            # To the end of what the template writes: there models of the hub have learnt to score.
            whole = Chat((*asked.messages, Message("assistant", response)))
            return tuple(
                encode_response(self._tokenizer, render(self._tokenizer, whole, generate=False), eos=False)
            )
        except InvalidInput as error:
            raise InvalidInput(_MESSAGES, index=index, got=error.got, allowed=error.allowed) from error

    def _check(self, index: int, pair: TextPair) -> None:
        maximum = self._section.max_text_bytes
        limits.check_text(_PROMPT, pair.prompt, max_bytes=maximum, index=index)
        limits.check_text(_RESPONSE, pair.response, max_bytes=maximum, index=index)
        limits.check_text(
            _MESSAGES, "".join(m.content for m in pair.messages), max_bytes=maximum, index=index
        )
        for message in pair.messages:
            if message.role not in ROLES:
                raise InvalidInput(
                    _MESSAGES, index=index, got=f"role {message.role!r}", allowed=f"one of {', '.join(ROLES)}"
                )
        if not self._section.append_eos and not self._wraps and not pair.messages:
            # An answer that says nothing is scored by its end; without that there is nothing to read.
            limits.check_not_empty(_RESPONSE, pair.response, index=index)


def _ends_with(text: str, end: str | None) -> bool:
    # Chat templates put a line break behind the last end.
    return bool(end) and text.rstrip().endswith(str(end))
