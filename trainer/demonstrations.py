"""Demonstrations, conversations and plain text as token sequences: what is read and what is learnt of each.

SFT learns them, the reward model is centred on them, PPO may mix them in. A conversation gives a sequence per
assistant turn: what stands before it is the prompt exactly as the policy will see it, template included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from fairlead.data.demonstrations import Conversation, Demonstration, Example, Message, PlainText
from fairlead.data.encoding import encode_prompt, encode_response
from fairlead.errors import DataError
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
        for prompt, response in turns(example, tokenizer):
            ids = [*prompt, *response]
            truncated += len(ids) > max_tokens
            if len(prompt) < max_tokens:
                sequences.append(TokenSequence(tuple(ids[:max_tokens]), len(prompt)))
    return sequences, truncated


def turns(
    example: Demonstration | Conversation, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], list[int]]]:
    """Prompt and response ids of a demonstration, or of every assistant turn of a conversation.

    Raises:
        DataError: a conversation, and the tokenizer has no chat template or the template refuses it.
    """
    if isinstance(example, Demonstration):
        prompt = encode_prompt(tokenizer, example.prompt)
        yield prompt, encode_response(tokenizer, example.completion, eos=True)
        return
    for end, message in enumerate(example.messages):
        if message.role == "assistant":
            before = _render(example, tokenizer, example.messages[:end], generate=True)
            whole = _render(example, tokenizer, example.messages[: end + 1], generate=False)
            if not whole.startswith(before):
                raise _refused(example, "a turn that changes what stands before it", "another chat template")
            # The template has written the special tokens, BOS among them: none are added.
            prompt = encode_response(tokenizer, before, eos=False)
            yield prompt, _ended(encode_response(tokenizer, whole[len(before) :], eos=False), tokenizer)


def _ended(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Up to its EOS, as no policy will sample the line break that templates put behind; added if missing."""
    end = tokenizer.eos_token_id
    if end not in ids:
        return [*ids, *encode_response(tokenizer, "", eos=True)]
    return ids[: len(ids) - ids[::-1].index(end)]


def _render(
    example: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    generate: bool,
) -> str:
    if not tokenizer.chat_template:
        raise _refused(
            example,
            "`messages`, and the tokenizer has no chat template",
            "a [model] path whose tokenizer has one, or `prompt` and `completion`",
        )
    said = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=generate)
    except (TemplateError, ValueError) as error:
        raise _refused(
            example, f"`messages` that the chat template refuses: {error}", "other turns"
        ) from error
    assert isinstance(text, str)
    return text


def _refused(example: Conversation, got: str, allowed: str) -> DataError:
    return DataError(example.file, example.line, got=got, allowed=allowed)


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
