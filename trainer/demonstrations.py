"""Demonstrations, conversations and plain text as token sequences: what is read and what is learnt of each.

SFT learns them, the reward model is centred on them, PPO may mix them in. A conversation gives a sequence per
assistant turn: what stands before it is the prompt exactly as the policy will see it, template included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from fairlead.data.demonstrations import Example, PlainText
from fairlead.data.encoding import encode_answer, encode_prompt, encode_response
from trainer.sequences import TokenSequence


def encode(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[list[TokenSequence], int]:
    """Token sequences of all examples, EOS at the end of each response and text.

    Responses that are too long lose their end, EOS included; those whose prompt leaves no room for a response
    are left out. Plain text that is too long goes on in another sequence, and every token is learnt once.
    Returns the sequences and how many were cut or left out.

    Raises:
        DataError: a conversation, and the tokenizer has no chat template or the template refuses it.
    """
    sequences: list[TokenSequence] = []
    truncated = 0
    for example in examples:
        if isinstance(example, PlainText):
            sequences += _windows(example, tokenizer, max_tokens=max_tokens)
            continue
        for asked, said in example.turns:
            prompt, response = encode_answer(tokenizer, asked, said)
            ids = [*prompt, *response]
            truncated += len(ids) > max_tokens
            if len(prompt) < max_tokens:
                sequences.append(TokenSequence(tuple(ids[:max_tokens]), len(prompt)))
    return sequences, truncated


def _windows(
    example: PlainText, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> Iterator[TokenSequence]:
    """The text cut to the limit; a later sequence starts with the last token of the one before."""
    ids = encode_prompt(tokenizer, example.text)
    ids += encode_response(tokenizer, "", eos=True)
    bos = getattr(tokenizer, "bos_token_id", None)
    if isinstance(bos, int) and ids[0] != bos:
        ids.insert(0, bos)
    for start in range(0, len(ids) - 1, max_tokens - 1):
        yield TokenSequence(tuple(ids[start : start + max_tokens]), 1)
