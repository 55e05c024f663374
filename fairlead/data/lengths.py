"""Measure the length of records, in tokens where a tokenizer is known and otherwise in words.

Used by `check`. A conversation that the chat template rejects is detected here, as in the trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fairlead.data.chat import Prompt
from fairlead.data.comparisons import Preference, RankedResponses
from fairlead.data.control import control_tokens
from fairlead.data.demonstrations import Conversation, Demonstration, PlainText
from fairlead.data.encoding import encode_answer, encode_prompt, encode_response
from fairlead.data.thumbs import Thumb

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = Demonstration | Conversation | PlainText | Preference | RankedResponses | Thumb | Prompt
"""A record of any source."""


class Lengths(NamedTuple):
    """Lengths of a prompt and of an answer to it."""

    prompt: int
    """Length of the prompt; 0 without one."""
    answer: int
    """Length of the answer."""
    content: int = 0
    """Hash of the answer's token ids; 0 where words are counted."""


class Ruler(Protocol):
    """Measures lengths in one unit."""

    @property
    def unit(self) -> str:
        """`tokens` or `words`."""
        ...

    def prompt(self, prompt: Prompt) -> int:
        """Return the length of a prompt."""
        ...

    def answer(self, prompt: Prompt, answer: str) -> Lengths:
        """Return the lengths of a prompt and an answer."""
        ...

    def text(self, text: str) -> int:
        """Return the length of plain text."""
        ...

    def control_tokens(self, text: str) -> tuple[str, ...]:
        """Return the control tokens of the tokenizer that a text contains."""
        ...


class Words:
    """Counts words separated by white space; roles are not counted."""

    unit = "words"

    def prompt(self, prompt: Prompt) -> int:
        """Return the words of a prompt."""
        if isinstance(prompt, str):
            return len(prompt.split())
        return sum(len(message.content.split()) for message in prompt.messages)

    def answer(self, prompt: Prompt, answer: str) -> Lengths:
        """Return the words of a prompt and an answer."""
        return Lengths(self.prompt(prompt), len(answer.split()))

    def text(self, text: str) -> int:
        """Return the words of plain text."""
        return len(text.split())

    def control_tokens(self, text: str) -> tuple[str, ...]:
        """Return none, because no tokenizer is known."""
        return ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """Counts the token ids that the stages produce, including special tokens and EOS."""

    tokenizer: PreTrainedTokenizerBase
    """Tokenizer of the model."""

    @property
    def unit(self) -> str:
        """The unit of lengths."""
        return "tokens"

    def prompt(self, prompt: Prompt) -> int:
        """Return the tokens of a prompt. Raises as `encoding.encode_prompt`."""
        return len(encode_prompt(self.tokenizer, prompt))

    def answer(self, prompt: Prompt, answer: str) -> Lengths:
        """Return the tokens of a prompt and an answer. Raises as `encoding.encode_answer`."""
        prompt_ids, answer_ids = encode_answer(self.tokenizer, prompt, answer)
        return Lengths(len(prompt_ids), len(answer_ids), hash(tuple(answer_ids)))

    def text(self, text: str) -> int:
        """Return the tokens of plain text."""
        return len(encode_response(self.tokenizer, text, eos=True))

    def control_tokens(self, text: str) -> tuple[str, ...]:
        """Return the control tokens in a text."""
        return tuple(name for name in control_tokens(self.tokenizer).names if name in text)


def measure(record: Record, ruler: Ruler) -> Iterator[Lengths]:
    """Yield the lengths of every sequence that a stage makes of a record; a prompt without answer has length
    0.

    Raises:
        DataError: for a conversation that the tokenizer's chat template rejects.
    """
    if isinstance(record, PlainText):
        yield Lengths(0, ruler.text(record.text))
    elif isinstance(record, Demonstration | Conversation):
        for prompt, answer in record.turns:
            yield ruler.answer(prompt, answer)
    elif isinstance(record, Preference | RankedResponses):
        for text in compared_texts(record):
            yield ruler.answer(record.prompt, text)
    elif isinstance(record, Thumb):
        yield ruler.answer(record.prompt, record.answer)
    else:
        yield Lengths(ruler.prompt(record), 0)


def compared_texts(record: Preference | RankedResponses) -> tuple[str, ...]:
    """Return the answers that are in a pair, every text once, in the order in which they are measured."""
    return tuple(dict.fromkeys(text for pair in record.compared for text in (pair.winner, pair.loser)))
