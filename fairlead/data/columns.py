"""Which keys of a line are read, and as what. Used by `check`; the parsers themselves do not need it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fairlead.data.foreign import translated
from fairlead.data.lines import Line

_MEANING = {
    "prompt": "prompt",
    "completion": "answer",
    "messages": "messages",
    "text": "plain text",
    "chosen": "preferred answer",
    "rejected": "other answer",
    "responses": "ranked answers",
    "label": "label",
}
_TURN = {"role", "content", "from", "value"}
_IN_ARRAY = {
    **dict.fromkeys(("prompt", "messages", "conversations", "chosen", "rejected"), _TURN),
    "completion": _TURN | {"weight"},
    "responses": {"text", "rank", "score"},
}
"""Keys that are read in the objects of an array."""


def read_as(kind: str, line: Line) -> Mapping[str, str]:
    """Return what each key of a valid line that is read is read as."""
    found = translated(line)
    if found is not None:
        return found.read_as
    return {key: _MEANING[key] for key in _read(kind, line) if line.has(key)}


def not_read(kind: str, line: Line) -> Iterator[str]:
    """Yield the keys of a valid line that are not read, once for each occurrence.

    A key of the messages is `messages[].name`. Null counts as absent.
    """
    known = read_as(kind, line)
    for key, value in line.values.items():
        if value is None:
            continue
        if key not in known:
            yield key
        elif isinstance(value, list):
            read = _keys_in_array(kind, key)
            for one in value:
                if isinstance(one, dict):
                    names = (name for name in one if name not in read and one[name] is not None)
                    yield from (f"{key}[].{name}" for name in names)


def _keys_in_array(kind: str, key: str) -> set[str]:
    read = _IN_ARRAY.get(key, set())
    learnt = kind == "demonstrations" and key in ("messages", "conversations")
    return read | {"weight"} if learnt else read


def _read(kind: str, line: Line) -> tuple[str, ...]:
    if kind == "sentences":
        return ("text", "label")
    if kind == "preferences":
        if line.has("responses"):
            return ("prompt", "responses")
        turns = line.values.get("chosen")
        whole = isinstance(turns, list) and turns[:1] and turns[0].get("role") != "assistant"
        return ("chosen", "rejected") if whole else ("prompt", "chosen", "rejected")
    if kind == "thumbs":
        return (*_read_demonstration(line), "label")
    if kind == "prompts":
        return ("prompt",) if line.has("prompt") else ("messages",)
    return _read_demonstration(line)


def _read_demonstration(line: Line) -> tuple[str, ...]:
    if line.has("messages"):
        return ("messages",)
    return ("text",) if line.has("text") and not line.has("completion") else ("prompt", "completion")
