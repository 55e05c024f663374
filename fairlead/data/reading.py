"""How a reward model reads token ids and whole texts: where an answer ends, and which control tokens count.

Imports only the standard library, since every model that is exported to Triton carries a copy of this file.
`control` derives the rules from a tokenizer; this file applies them. Knows neither tokenizers nor models.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

CUT = "\ufdd0"
"""Where a text is encoded in two parts, so that no token spans both. A noncharacter: no text contains it."""


@dataclass(frozen=True, slots=True)
class ReadingRules:
    """The rules of one model and its tokenizer."""

    conversation_end: tuple[int, ...]
    """Ids after an answer in a conversation; empty if the chat template writes none."""
    text_end: tuple[int, ...]
    """Ids after a response to a plain prompt: EOS, or none."""
    turn_stop: int | None
    """The id with which the chat template ends an assistant's turn, and the policy stops."""
    eos: int | None
    """The tokenizer's EOS."""
    trailing: tuple[int, ...]
    """Ids that may follow the end of a turn and are no content: the line break that templates write, EOS."""
    markers: tuple[int, ...]
    """Control tokens that the chat template writes around turns: ids that contain one are a conversation."""
    has_template: bool
    """Whether the tokenizer has a chat template."""
    foreign: tuple[str, ...]
    """Control tokens that the template does not write: within a whole text they are text."""
    padding: tuple[str, ...]
    """Tokens that are padding at the start of a whole text; the first is also padding at its end."""
    pads_with_eos: bool
    """Whether EOS is the padding token: a repeated one is then only an end."""
    bos: str
    """BOS if the template starts with it, else empty."""
    bos_id: int | None
    """The tokenizer's BOS."""
    affixes: tuple[tuple[int, ...], tuple[int, ...]]
    """Ids that the tokenizer adds before and after a plain text."""

    def finish(self, ids: Sequence[int], *, start: int = 0, append: bool) -> tuple[int, ...]:
        """Return the ids with the end of the answer as the model reads it.

        Args:
            ids: prompt and answer.
            start: where the answer starts, if it is known.
            append: end an answer that has no end; otherwise its ids are returned unchanged.
        """
        stop = self._start_of_end(ids, start)
        if stop is None and not append:
            return tuple(ids)
        content = ids if stop is None else ids[:stop]
        if not self._is_conversation(ids, content):
            return (*content, *self.text_end) if append and self.text_end else tuple(ids)
        return (*content, *self.conversation_end)

    def whole_ids(self, text: str, tokenize: Callable[[str, bool], list[int]]) -> tuple[int, ...]:
        """Return the ids of a whole text, before `finish`.

        Padding and a second BOS are dropped. Of the control tokens in the text, only BOS, EOS and those that
        the chat template writes are read as such. A plain text gets the tokenizer's special tokens, a
        rendered conversation only the template's BOS.

        Args:
            text: prompt and answer, as the template renders them or as plain text.
            tokenize: returns the ids of a text; with True, with the special tokens of a plain text.
        """
        parts = cut(self.without_padding(text), self.foreign).split(CUT)
        if self.markers:
            ids = [token for part in parts for token in tokenize(part, False)]
            if not set(self.markers).isdisjoint(ids):
                if self.bos and self.bos_id is not None and ids[0] != self.bos_id:
                    ids.insert(0, self.bos_id)
                return tuple(ids)
        if len(parts) == 1:
            ids = tokenize(parts[0], True)
        else:
            inner = [token for part in parts for token in tokenize(part, False)]
            ids = [*self.affixes[0], *inner, *self.affixes[1]]
        return tuple(ids[1:] if self.bos_id is not None and ids[:2] == [self.bos_id] * 2 else ids)

    def without_padding(self, text: str) -> str:
        """Return a whole text without padding and EOS before it, and without padding after it.

        OpenRLHF's own server removes the same from texts that its clients decoded in batches.
        """
        if not self.padding:
            return text
        names = "|".join(map(re.escape, self.padding))
        found = re.match(rf"(?:\s*(?:{names}))+", text)
        if found:
            first = self.bos if self.bos and self.bos in found.group() else ""
            text = first + text[found.end() :]
        if self.pads_with_eos or self.padding[0] not in text:
            return text
        ended = re.search(rf"(?:\s*(?:{names}))+\s*$", text)
        if ended is None or self.padding[0] not in ended.group():
            return text
        return text[: ended.start()] + next((name for name in self.padding[1:] if name in ended.group()), "")

    def to_json(self) -> str:
        """Return the rules as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ReadingRules:
        """Return rules from `to_json`.

        Raises:
            ValueError, TypeError: if they are not valid.
        """
        found = json.loads(text, object_hook=lambda fields: {key: _frozen(fields[key]) for key in fields})
        return cls(**found)

    def _start_of_end(self, ids: Sequence[int], start: int) -> int | None:
        """Return where the end begins: at the first stop id of those that nothing else follows."""
        found = None
        for index in range(len(ids) - 1, start - 1, -1):
            if ids[index] in (self.turn_stop, self.eos):
                found = index
            elif ids[index] not in self.trailing:
                break
        return found

    def _is_conversation(self, ids: Sequence[int], content: Sequence[int]) -> bool:
        if not self.has_template:
            return False
        ended = ids[len(content)] if len(content) < len(ids) else None
        if ended is not None and ended == self.turn_stop:
            return True
        # Where the template marks turns by text only, every text of such a model is taken for a conversation.
        return not self.markers or not set(self.markers).isdisjoint(content)


def cut(text: str, names: tuple[str, ...]) -> str:
    """Return a text with a CUT within every occurrence of the names, so that none of them is one token."""
    if not names or not any(first in text for first in _first_characters(names)):
        return text
    return _starts(names).sub(lambda found: found.group() + CUT, text)


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@functools.lru_cache(maxsize=64)
def _first_characters(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name[0] for name in names)


@functools.lru_cache(maxsize=64)
def _starts(names: tuple[str, ...]) -> re.Pattern[str]:
    # One character, with the rest of the name ahead: occurrences that overlap are all found.
    return re.compile("|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names))
