"""Text token by token: the parts add up to the whole text, and stop strings are found where they end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from services.policy.detokenizer import Detokenizer
from tests.tiny import tiny_tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte: non-ASCII characters take several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    definition = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    definition.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    definition.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=definition)


BYTES = byte_tokenizer()
WORDS = tiny_tokenizer()


def decode_bytes(ids: Sequence[int]) -> str:
    return BYTES.decode(list(ids))


def decode_words(ids: Sequence[int]) -> str:
    return WORDS.decode(list(ids), skip_special_tokens=True)


def first_completion(text: str, stop_strings: list[str]) -> int | None:
    """Return the length of the shortest prefix that contains a stop string."""
    return next(
        (end for end in range(len(text) + 1) if any(stop in text[:end] for stop in stop_strings)), None
    )


@settings(max_examples=100, deadline=None)
@given(
    st.text(alphabet="ab é→😀.", max_size=20),
    st.lists(st.text(alphabet="ab é→😀.", min_size=1, max_size=4), max_size=3),
)
def test_stop_string_is_found_at_the_token_that_completes_it(text: str, stop_strings: list[str]) -> None:
    detokenizer = Detokenizer(decode_bytes, stop_strings=stop_strings)
    pieces, stopped = "", None
    for number, token in enumerate(BYTES(text)["input_ids"], start=1):
        if detokenizer.add(token):
            stopped = number
            break
        pieces += detokenizer.take()
    pieces += detokenizer.take(last=True)
    expected = first_completion(text, stop_strings)
    if expected is None:
        assert stopped is None
        assert pieces == text
    else:
        assert stopped == len(text[:expected].encode())
        assert pieces == text[:expected]


def test_incomplete_character_is_returned_at_the_end() -> None:
    detokenizer = Detokenizer(decode_bytes)
    tokens = BYTES("a😀")["input_ids"][:-1]
    for token in tokens:
        detokenizer.add(token)
    assert detokenizer.take() == "a"
    assert detokenizer.take(last=True) == decode_bytes(tokens)[1:]


@pytest.mark.parametrize(
    ("words", "stop", "length"),
    [("w1 w2 w3", "w2", 2), ("w1 w2 w3", "w1 w2", 2), ("w1 w2 w3", "1 w2 w", 3), ("w1 w1 w1", "w2", None)],
)
def test_stop_string_may_span_words(words: str, stop: str, length: int | None) -> None:
    detokenizer = Detokenizer(decode_words, stop_strings=[stop])
    found = [detokenizer.add(token) for token in WORDS(words, add_special_tokens=False)["input_ids"]]
    assert (found.index(True) + 1 if True in found else None) == length


def test_special_tokens_have_no_text() -> None:
    detokenizer = Detokenizer(decode_words, stop_strings=["</s>", "<unk>"])
    assert not detokenizer.add(5)
    assert not detokenizer.add(2)
    assert detokenizer.take(last=True) == "w1"
