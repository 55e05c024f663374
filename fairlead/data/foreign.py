"""Translate lines in the formats of other projects, Alpaca and ShareGPT, into the keys that the parsers read.

A line that has keys of this project's formats is left as it is. Errors name the keys of the line itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fairlead.data.lines import Line

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bot"), "assistant"),
    "system": "system",
}
"""Names of ShareGPT's `from`, and the role that each is."""
_OURS = ("prompt", "messages", "completion", "responses")
"""Keys of this project's formats; a line with one of them is not translated."""
_TOOLS = ("tools", "functions")
"""Keys of a line that a chat template may write; no format reads them."""
_ANSWERS = {"chosen": "preferred answer", "rejected": "other answer"}

Turn = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Foreign:
    """A translated line."""

    name: str
    """`Alpaca` or `ShareGPT`."""
    line: Line
    """The line in this project's keys."""
    read_as: Mapping[str, str]
    """What each key of the original line is read as."""


def native(line: Line) -> Line:
    """Return the line in this project's keys.

    Raises:
        DataError: see `translated`; or the line has tools, which are not read.
    """
    line.refuse(_TOOLS)
    found = translated(line)
    return line if found is None else found.line


def translated(line: Line) -> Foreign | None:
    """Return the translation of a line of Alpaca or ShareGPT; None for other lines.

    Raises:
        DataError: if a key has a value of another type, or a role is unknown.
    """
    if any(line.has(key) for key in _OURS):
        return None
    if line.has("instruction"):
        return _alpaca(line)
    if line.has("conversations"):
        return _sharegpt(line)
    return None


def _alpaca(line: Line) -> Foreign:
    read_as = {"instruction": "user message"}
    turns = list(_system(line, read_as))
    renamed = []
    if line.has("history"):
        read_as["history"] = "earlier turns"
        for index, (name, turn) in enumerate(_history(line), start=len(turns)):
            turns.append(turn)
            renamed.append((f"messages[{index}].content", name))
    asked = line.text("instruction")
    if line.has("input"):
        read_as["input"] = "user message, after `instruction`"
        asked = "\n".join(filter(None, (asked, line.text("input"))))
    if not asked.strip():
        raise line.error(got="blank `instruction`", allowed="`instruction` or `input` with text")
    turns.append({"role": "user", "content": asked})
    values: Turn = {"prompt": turns}
    if line.has("chosen") or line.has("rejected"):
        read_as |= _ANSWERS
        values |= {key: line.text(key) for key in _ANSWERS}
    elif line.has("output"):
        read_as["output"] = "assistant message"
        renamed.append((f"messages[{len(turns)}].content", "output"))
        values = {"messages": [*turns, {"role": "assistant", "content": line.text("output")}]}
    else:
        renamed.append(("completion", "output"))
    return Foreign("Alpaca", _line(line, read_as, values, renamed), read_as)


def _sharegpt(line: Line) -> Foreign:
    read_as = {"conversations": "messages"}
    turns = list(_system(line, read_as))
    shift = len(turns)
    renamed = [("messages", "conversations"), ("prompt", "conversations")]
    for index, turn in enumerate(line.objects("conversations")):
        turns.append(_turn(turn))
        renamed += (
            (f"messages[{shift + index}].{ours}", f"conversations[{index}].{theirs}")
            for ours, theirs in (("content", "value"), ("role", "from"))
            if turn.has("from")
        )
    if line.has("chosen") or line.has("rejected"):
        read_as |= _ANSWERS
        values: Turn = {"prompt": turns} | {key: _answer(line, key) for key in _ANSWERS}
    else:
        values = {"messages": turns}
    return Foreign("ShareGPT", _line(line, read_as, values, renamed), read_as)


def _system(line: Line, read_as: dict[str, str]) -> Iterator[Turn]:
    if line.has("system"):
        read_as["system"] = "system message"
        if content := line.text("system"):
            yield {"role": "system", "content": content}


def _history(line: Line) -> Iterator[tuple[str, Turn]]:
    """Yield the earlier turns, each with its place in the line."""
    pairs = line.values["history"]
    if not isinstance(pairs, list):
        raise line.error(got="`history` that is not an array", allowed="an array of [question, answer]")
    for index, pair in enumerate(pairs):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise line.error(got=f"`history[{index}]` = {pair!r}", allowed="[question, answer] as two texts")
        for part, (role, text) in enumerate(zip(("user", "assistant"), pair, strict=True)):
            yield f"history[{index}][{part}]", {"role": role, "content": text}


def _turn(turn: Line) -> Turn:
    """Return a turn with `role` and `content`; one that has them already is unchanged.

    Raises:
        DataError: if it has keys of both forms, or of neither.
    """
    both = [key for key in ("role", "content") if turn.has("from") and turn.has(key)]
    if both:
        raise turn.error(
            got=f"`{turn.inside}from` and `{turn.inside}{both[0]}`", allowed="`from` and `value`"
        )
    if turn.has("role"):
        return turn.values
    said = turn.text("from")
    role = _ROLES.get(said.lower())
    if role is None:
        raise turn.error(
            got=f"`{turn.inside}from` = {said[:40]!r}", allowed=f"one of {', '.join(sorted(_ROLES))}"
        )
    others = {key: value for key, value in turn.values.items() if key not in ("from", "value")}
    return {**others, "role": role, "content": turn.text("value")}


def _answer(line: Line, key: str) -> object:
    value = line.values.get(key)
    if not isinstance(value, dict):
        return value if isinstance(value, list) else line.text(key)
    return [_turn(Line(line.file, line.number, value, inside=f"{key}."))]


def _line(line: Line, read_as: Mapping[str, str], values: Turn, renamed: list[tuple[str, str]]) -> Line:
    others = {key: value for key, value in line.values.items() if key not in read_as}
    return Line(line.file, line.number, {**others, **values}, renamed=tuple(renamed), keys=tuple(line.values))
