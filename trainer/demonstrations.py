"""Demonstrations, conversations and plain text as token sequences of a prompt and a response to learn.

SFT learns them, the reward model is centred on them, PPO-ptx mixes them in. A conversation gives one sequence
per assistant turn; everything before the turn is the prompt, exactly as the policy sees it with its template.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from fairlead.data.demonstrations import Example, PlainText
from fairlead.data.encoding import encode_answer, encode_prompt, encode_response
from trainer import seeds
from trainer.sequences import TokenSequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """The token sequences of demonstrations, and how many answers do not fit."""

    sequences: list[TokenSequence]
    """In the order of the examples."""
    cut: int
    """Answers that lost their end, so that the token at which the policy stops is not learnt from them."""
    left_out: int
    """Answers left out because the prompt fills the limit."""

    def warn(self, what: str, *, max_tokens: int, remedy: str) -> None:
        """Log how many answers are cut and left out, if any.

        Args:
            what: what the demonstrations are for.
            max_tokens: the limit that they were encoded with.
            remedy: what to do about it.
        """
        if self.cut or self.left_out:
            logger.warning(
                "%s: within %d tokens %d of %d answers lose their end, so that stopping is not learnt from "
                "them, and %d are left out because their prompts fill the limit; %s",
                *(what, max_tokens, self.cut, len(self.sequences) + self.left_out, self.left_out, remedy),
            )


def encode(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> EncodedExamples:
    """Return the token sequences of all examples, and how many were cut or left out.

    Every response and every text ends with EOS. A response that is too long loses its end with the EOS; an
    example whose prompt already fills the limit is left out. Plain text that is too long continues in another
    sequence, and every token is learned once.

    Raises:
        DataError: for a conversation, if there is no chat template or the template refuses it.
    """
    sequences: list[TokenSequence] = []
    cut = left_out = 0
    for example in examples:
        if isinstance(example, PlainText):
            sequences += _windows(example, tokenizer, max_tokens=max_tokens)
            continue
        for asked, answer in example.turns:
            prompt, response = encode_answer(tokenizer, asked, answer)
            if len(prompt) >= max_tokens:
                left_out += 1
                continue
            ids = [*prompt, *response]
            cut += len(ids) > max_tokens
            sequences.append(TokenSequence(tuple(ids[:max_tokens]), len(prompt)))
    return EncodedExamples(sequences, cut, left_out)


def encode_whole(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> list[TokenSequence]:
    """Return the token sequences of the examples whose answers fit with their ends. Raises as `encode`."""
    # A sequence that does not fit is longer than the limit here, too.
    found = encode(examples, tokenizer, max_tokens=max_tokens + 1).sequences
    return [sequence for sequence in found if len(sequence.token_ids) <= max_tokens]


def _windows(
    example: PlainText, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> Iterator[TokenSequence]:
    """Cut a text to the limit; each later sequence starts with the last token of the one before."""
    ids = encode_prompt(tokenizer, example.text)
    ids += encode_response(tokenizer, "", eos=True)
    bos = getattr(tokenizer, "bos_token_id", None)
    if isinstance(bos, int) and ids[0] != bos:
        ids.insert(0, bos)
    for start in range(0, len(ids) - 1, max_tokens - 1):
        yield TokenSequence(tuple(ids[start : start + max_tokens]), 1)


class DemonstrationStream:
    """An endless stream of demonstrations, in a new permutation every epoch.

    PPO-ptx mixes their cross-entropy into every optimizer step (InstructGPT, section 3.5).
    """

    def __init__(self, sequences: Sequence[TokenSequence], *, seed: int) -> None:
        """`sequences` must not be empty; `seed` is the seed of the run."""
        self._sequences = sequences
        self._seed = seed
        self.cursor = 0
        """Demonstrations drawn so far; part of the checkpoint."""
        self._epoch = -1
        self._order: list[int] = []

    def take(self, count: int) -> list[TokenSequence]:
        """Return the next `count` demonstrations."""
        found = []
        for number in range(self.cursor, self.cursor + count):
            epoch, position = divmod(number, len(self._sequences))
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = seeds.permutation(len(self._sequences), self._seed, "ptx", epoch)
            found.append(self._sequences[self._order[position]])
        self.cursor += count
        return found
