"""Text of a growing token sequence, token by token, with detection of stop strings.

A single token has no text: leading spaces and multi-token characters depend on the tokens before it. So
each step decodes a short tail twice, with and without the new tokens, and takes the difference (as
text-generation-inference does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Text of one sample."""

    def __init__(self, decode: Callable[[Sequence[int]], str], *, stop_strings: Sequence[str] = ()) -> None:
        """`decode` returns the text of token ids without special tokens."""
        self._decode = decode
        self._stop_strings = tuple(stop_strings)
        self._longest = max(map(len, stop_strings), default=0)
        self._token_ids: list[int] = []
        self._tail_start = 0
        self._num_decoded = 0  # tokens whose text is in self._text
        self._text = ""
        self._num_taken = 0

    def add(self, token: int) -> bool:
        """Add the next token, and return whether it completed a stop string."""
        self._token_ids.append(token)
        before = self._decode(self._token_ids[self._tail_start : self._num_decoded])
        tail = self._decode(self._token_ids[self._tail_start :])
        if len(tail) <= len(before) or tail.endswith(_INCOMPLETE):
            return False
        searched = max(0, len(self._text) - self._longest + 1)
        self._text += tail[len(before) :]
        self._tail_start = self._num_decoded
        self._num_decoded = len(self._token_ids)
        return any(self._text.find(stop, searched) >= 0 for stop in self._stop_strings)

    def take(self, *, last: bool = False) -> str:
        """Return the text since the last call; with `last`, also text that was held back as incomplete."""
        if last:
            before = self._decode(self._token_ids[self._tail_start : self._num_decoded])
            self._text += self._decode(self._token_ids[self._tail_start :])[len(before) :]
            self._tail_start = self._num_decoded = len(self._token_ids)
        new = self._text[self._num_taken :]
        self._num_taken = len(self._text)
        return new
