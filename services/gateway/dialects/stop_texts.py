"""Stop texts, cut off answers: the policy service hands them out as part of the text, OpenAI's clients do not
expect them.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopCutter:
    """One answer, piece by piece; holds back what may turn out to be the beginning of a stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Without stop texts pieces pass as they are."""
        self._stops = tuple(stops)
        self._held = ""
        self._ended = False

    def add(self, piece: str, *, last: bool) -> str:
        """What of the text so far can be handed on."""
        if self._ended:
            return ""
        self._held += piece
        # The one that is complete first counts, as in the policy; then the longest.
        found = [(begin + len(stop), begin) for stop in self._stops if (begin := self._held.find(stop)) >= 0]
        if found or last:
            self._ended = True
            return self._held[: min(found)[1]] if found else self._held
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        end = len(self._held) - keep
        out, self._held = self._held[:end], self._held[end:]
        return out

    def _overlap(self, stop: str) -> int:
        """Length of the longest beginning of a stop text that the text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)


def cut(text: str, stops: Sequence[str]) -> str:
    """A whole answer, up to the stop text in it that is complete first."""
    return StopCutter(stops).add(text, last=True)
