"""Judgments in lines of `[data] preferences` that say who ranked: the keys of `comparisons` and a few more.

`labeler` is needed. `task`, `shown`, and `answer` of each response are read where they are given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from fairlead.data.chat import turns_of
from fairlead.data.comparisons import Preference, RankedResponses, comparisons
from fairlead.data.lines import Line
from fairlead.judgments import Judgment

_DIGEST_CHARACTERS = 24


@dataclass(frozen=True, slots=True)
class JudgedLine:
    """A judgment and the line that it is from."""

    judgment: Judgment
    """Lengths are in characters."""
    line: Line
    """The line, with keys that say more, such as `cohort` or `round`."""


def judged(line: Line) -> JudgedLine:
    """Return the judgment of a line with a key `labeler`.

    Without `task` the prompt and the texts of the answers name the task, and without `answer` the text names
    an answer. `shown` has the answers in the order in which the labeler saw them. Two answers of the
    same text are one, with the mean of their ranks. A pair of `chosen` and `rejected` is a task of its own,
    since several lines may be pairs of one ranking.

    Raises:
        DataError: as `comparisons`, and for a line without a labeler or with positions that are no order.
    """
    record = comparisons(line, tie_margin=0.0)
    if not line.has("labeler"):
        raise line.error(
            got=f"the keys {', '.join(line.values)}", allowed="a key `labeler` that says who ranked"
        )
    labeler = line.identifier("labeler")
    texts, ranks = _ranked(record)
    names = _names(line, texts)
    of_name: dict[str, list[float]] = {}
    for name, rank in zip(names, ranks, strict=True):
        of_name.setdefault(name, []).append(rank)
    if len(of_name) < 2:
        raise line.error(got="answers that are all the same text", allowed="at least 2 that differ")
    judgment = Judgment(
        task=_task(line, record, names),
        labeler=labeler,
        ranks={name: fmean(found) for name, found in of_name.items()},
        shown=_shown(line, names) if len(of_name) == len(names) else (),
        lengths={name: len(text) for name, text in zip(names, texts, strict=True)},
    )
    return JudgedLine(judgment, line)


def newest(lines: Iterable[JudgedLine]) -> list[JudgedLine]:
    """Return the last line of each labeler and task, in the order of the lines: a later one is a revision."""
    found: dict[tuple[str, str], JudgedLine] = {}
    for one in lines:
        key = (one.judgment.task, one.judgment.labeler)
        found.pop(key, None)
        found[key] = one
    return list(found.values())


def _task(line: Line, record: Preference | RankedResponses, names: Iterable[str]) -> str:
    task = line.identifier("task") if line.has("task") else repr(turns_of(record.prompt))
    if line.has("task") and isinstance(record, RankedResponses):
        return task
    return _digest("\0".join([task, *sorted(names)]))


def _ranked(record: Preference | RankedResponses) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return texts and their ranks."""
    if isinstance(record, Preference):
        return (record.chosen, record.rejected), (1.0, 2.0)
    return record.texts, tuple(-worth for worth in record.worths)


def _names(line: Line, texts: tuple[str, ...]) -> list[str]:
    """Return the ids of answers, or digests of their texts."""
    responses = line.objects("responses") if line.has("responses") else []
    if not any(response.has("answer") for response in responses):
        return [*map(_digest, texts)]
    names = [response.identifier("answer") for response in responses]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise line.error(got=f"`answer` = {twice!r} twice", allowed="an id for each answer")
    return names


def _shown(line: Line, names: list[str]) -> tuple[str, ...]:
    """Return the answers in the order in which the labeler saw them; empty if the line does not say."""
    shown = line.values.get("shown")
    if not shown:
        return ()
    if not isinstance(shown, list) or sorted(map(str, shown)) != sorted(names):
        raise line.error(got=f"`shown` = {shown!r}", allowed=f"an array of the answers {', '.join(names)}")
    return tuple(map(str, shown))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]
