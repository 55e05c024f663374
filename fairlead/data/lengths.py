"""How long records are, in tokens where a tokenizer is known and else in words.

Under `check`; a conversation that the chat template refuses is found here, as the trainer would find it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fairlead.data.chat import Prompt
from fairlead.data.comparisons import Preference, RankedResponses
from fairlead.data.demonstrations import Conversation, Demonstration, PlainText
from fairlead.data.encoding import encode_answer, encode_prompt, encode_response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = Demonstration | Conversation | PlainText | Preference | RankedResponses | Prompt
"""What a line of any source may hold."""
Lengths = tuple[int, int]
"""Of a prompt, and of an answer to it."""


class Ruler(Protocol):
    """What measures."""

    @property
    def unit(self) -> str:
        """`tokens` or `words`."""
        ...

    def prompt(self, prompt: Prompt) -> int:
        """Length of a prompt."""
        ...

    def answer(self, prompt: Prompt, answer: str) -> Lengths:
        """Lengths of a prompt and an answer."""
        ...

    def text(self, text: str) -> int:
        """Length of plain text."""
        ...


class Words:
    """Counts what white space separates; roles count for nothing."""

    unit = "words"

    def prompt(self, prompt: Prompt) -> int:
        """Words of a prompt."""
        if isinstance(prompt, str):
            return len(prompt.split())
        return sum(len(message.content.split()) for message in prompt.messages)

    def answer(self, prompt: Prompt, answer: str) -> Lengths:
        """Words of a prompt and an answer."""
        return self.prompt(prompt), len(answer.split())

    def text(self, text: str) -> int:
        """Words of plain text."""
        return len(text.split())


@dataclass(frozen=True, slots=True)
class Tokens:
    """Counts the ids that the stages make, special tokens and EOS included."""

    tokenizer: PreTrainedTokenizerBase
    """Of the model that reads."""

    @property
    def unit(self) -> str:
        """Tokens."""
        return "tokens"

    def prompt(self, prompt: Prompt) -> int:
        """Tokens of a prompt. Raises what `encoding.encode_prompt` raises."""
        return len(encode_prompt(self.tokenizer, prompt))

    def answer(self, prompt: Prompt, answer: str) -> Lengths:
        """Tokens of a prompt and an answer. Raises what `encoding.encode_answer` raises."""
        asked, said = encode_answer(self.tokenizer, prompt, answer)
        return len(asked), len(said)

    def text(self, text: str) -> int:
        """Tokens of plain text."""
        return len(encode_response(self.tokenizer, text, eos=True))


def measure(record: Record, ruler: Ruler) -> Iterator[Lengths]:
    """Lengths of every sequence that a stage makes of a record; of a bare prompt the answer is 0 long.

    Raises:
        DataError: a conversation that the tokenizer's chat template refuses.
    """
    if isinstance(record, PlainText):
        yield 0, ruler.text(record.text)
    elif isinstance(record, Demonstration | Conversation):
        for prompt, answer in record.turns:
            yield ruler.answer(prompt, answer)
    elif isinstance(record, Preference):
        for answer in (record.chosen, record.rejected):
            yield ruler.answer(record.prompt, answer)
    elif isinstance(record, RankedResponses):
        for text in dict.fromkeys(record.texts[index] for pair in record.pairs for index in pair):
            yield ruler.answer(record.prompt, text)
    else:
        yield ruler.prompt(record), 0
