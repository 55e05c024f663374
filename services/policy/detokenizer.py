"""Text of a growing token sequence, token by token, and the watch for stop strings in it.

A token alone has no text: leading spaces and characters of several tokens depend on what stands before. So
each step decodes a short tail twice, with and without the new tokens, and takes the difference (as
text-generation-inference does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Text of one sample."""

    def __init__(self, decode: Callable[[Sequence[int]], str], *, stop_strings: Sequence[str] = ()) -> None:
        """`decode` leaves special tokens out."""
        self._decode = decode
        self._stop_strings = tuple(stop_strings)
        self._longest = max(map(len, stop_strings), default=0)
        self._token_ids: list[int] = []
        self._before = 0  # start of the tail
        self._read = 0  # tokens whose text is out
        self._text = ""
        self._taken = 0

    def add(self, token: int) -> bool:
        """Takes the next token. Returns whether it completed a stop string."""
        self._token_ids.append(token)
        before = self._decode(self._token_ids[self._before : self._read])
        tail = self._decode(self._token_ids[self._before :])
        if len(tail) <= len(before) or tail.endswith(_INCOMPLETE):
            return False
        searched = max(0, len(self._text) - self._longest + 1)
        self._text += tail[len(before) :]
        self._before, self._read = self._read, len(self._token_ids)
        return any(self._text.find(stop, searched) >= 0 for stop in self._stop_strings)

    def take(self, *, last: bool = False) -> str:
        """Text since the last call; at the last one, what was held back as incomplete too."""
        if last:
            before = self._decode(self._token_ids[self._before : self._read])
            self._text += self._decode(self._token_ids[self._before :])[len(before) :]
            self._before = self._read = len(self._token_ids)
        new = self._text[self._taken :]
        self._taken = len(self._text)
        return new
