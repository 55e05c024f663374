"""Rankings as tasks of Label Studio with results of its tags Ranker and Pairwise, and such tasks as rankings.

A Ranker has a bucket for each place, so that answers in one bucket are a tie. Pairwise knows left and right;
a tie of two answers is a result of the tag Choices beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fairlead.errors import InvalidInput
from services.feedback.exports.incoming import ForeignRanking, Incoming
from services.feedback.exports.lines import Values, as_line, prompt_of, readable, text_at, turns_of
from services.feedback.store.judged import Judged
from services.feedback.store.records import NewAnswer, NewPrompt, NewTask, Task

_RANK, _LIST, _PAIR, _TIE = "rank", "answers", "pair", "tie"
_SIDES = ("left", "right")


def tasks(judged: Iterable[Judged]) -> Iterator[Values]:
    """Yield a task for each task, with an annotation of each labeler, in the form that Label Studio imports.

    `completed_by` counts the labelers of a task; `meta.labelers` has their pseudonyms in this order.
    """
    found: dict[str, list[Judged]] = {}
    for one in judged:
        if "ranks" in (one.entry.body or {}):
            found.setdefault(one.task.id, []).append(one)
    for several in found.values():
        yield _task(several[0].task, several)


def as_bytes(judged: Iterable[Judged]) -> bytes:
    """Return a JSON array of tasks, which is what Label Studio imports."""
    return ("[\n" + ",\n".join(as_line(task) for task in tasks(judged)) + "\n]\n").encode("utf-8")


def from_tasks(found: Iterable[Mapping[str, Any]]) -> Iterator[Incoming]:
    """Yield the task and the rankings of each task of Label Studio that has Ranker or Pairwise results.

    Skipped annotations (`was_cancelled`) are left out.

    Raises:
        InvalidInput: a task has no answers, another value than a text, or a result that ranks other items;
            names the task.
    """
    for index, values in enumerate(found):
        where = f"tasks[{index}]"
        data = _object(values.get("data"), f"{where}.data")
        items = _items(data, where)
        rankings = tuple(_rankings(values, [item for item, _ in items], where))
        turns = turns_of(data.get("prompt", data.get("text")), f"{where}.data.prompt")
        task = NewTask(
            kind="pair" if "text1" in data else "rank",
            prompt=NewPrompt(turns, source="label-studio"),
            answers=tuple(NewAnswer(text) for _, text in items),
            overlap=max(1, len(rankings)),
        )
        yield Incoming(task, rankings)


def labeling_config(answers: int) -> str:
    """Return the labeling configuration for tasks with a number of answers to rank."""
    buckets = "".join(f'<Bucket name="{place}" title="{place}"/>' for place in range(1, answers + 1))
    return (
        '<View><Paragraphs name="prompt" value="$prompt" nameKey="role" textKey="content"/>'
        f'<List name="{_LIST}" value="$items" title="Answers"/>'
        f'<Ranker name="{_RANK}" toName="{_LIST}">{buckets}</Ranker></View>'
    )


def pairwise_config() -> str:
    """Return the labeling configuration for tasks with two answers."""
    return (
        '<View><Paragraphs name="prompt" value="$prompt" nameKey="role" textKey="content"/>'
        f'<Pairwise name="{_PAIR}" toName="text1,text2"/>'
        '<Text name="text1" value="$text1"/><Text name="text2" value="$text2"/>'
        f'<Choices name="{_TIE}" toName="text1"><Choice value="{_TIE}"/></Choices></View>'
    )


def _task(task: Task, several: list[Judged]) -> Values:
    texts = {answer: readable(several[0].answers[answer].text) for answer in task.answers}
    prompt = prompt_of(several[0].turns)
    data: Values = {"prompt": [{"role": "text", "content": prompt}] if isinstance(prompt, str) else prompt}
    if task.kind == "pair":
        data |= {f"text{number}": text for number, text in enumerate(texts.values(), start=1)}
    else:
        data["items"] = [
            {"id": f"answer-{number}", "title": f"Answer {number}", "body": text}
            for number, text in enumerate(texts.values(), start=1)
        ]
    annotations = []
    for number, one in enumerate(several, start=1):
        ranks = [(one.entry.body or {})["ranks"][answer] for answer in task.answers]
        result = _pairwise(ranks) if task.kind == "pair" else _ranker(ranks)
        annotations.append({"completed_by": number, "was_cancelled": False, "result": [result]})
    labelers = [one.pseudonym for one in several]
    meta = {"task": task.id, "round": task.round, "why": task.why, "labelers": labelers}
    return {"data": data, "meta": meta, "annotations": annotations}


def _ranker(ranks: list[int]) -> Values:
    buckets: dict[str, list[str]] = {str(place): [] for place in range(1, len(ranks) + 1)}
    for number, rank in enumerate(ranks, start=1):
        buckets[str(rank)].append(f"answer-{number}")
    return {"from_name": _RANK, "to_name": _LIST, "type": "ranker", "value": {"ranker": buckets}}


def _pairwise(ranks: list[int]) -> Values:
    if ranks[0] == ranks[1]:
        return {"from_name": _TIE, "to_name": "text1", "type": "choices", "value": {"choices": [_TIE]}}
    side = _SIDES[0] if ranks[0] < ranks[1] else _SIDES[1]
    return {"from_name": _PAIR, "to_name": "text1,text2", "type": "pairwise", "value": {"selected": side}}


def _items(data: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """Return names and texts of the answers of a task."""
    if "text1" in data:
        return [
            (side, text_at(f"{where}.data.text{number}", data.get(f"text{number}")))
            for number, side in enumerate(_SIDES, start=1)
        ]
    items = data.get("items")
    if not isinstance(items, list):
        allowed = "`items` to rank, or `text1` and `text2`"
        raise InvalidInput(f"{where}.data", got=", ".join(data), allowed=allowed)
    found = []
    for number, item in enumerate(items):
        values = _object(item, f"{where}.data.items[{number}]")
        name = values.get("id")
        text = values.get("body", values.get("title"))
        found.append((str(name), text_at(f"{where}.data.items[{number}].body", text)))
    return found


def _rankings(task: Mapping[str, Any], names: list[str], where: str) -> Iterator[ForeignRanking]:
    labelers = _object(task.get("meta") or {}, f"{where}.meta").get("labelers") or []
    for number, annotation in enumerate(task.get("annotations") or []):
        values = _object(annotation, f"{where}.annotations[{number}]")
        if values.get("was_cancelled"):
            continue
        by = values.get("completed_by")
        if isinstance(by, Mapping):
            author = str(by.get("email") or by.get("id"))
        elif isinstance(by, int) and 1 <= by <= len(labelers):
            author = str(labelers[by - 1])
        else:
            author = str(by or f"annotator {number + 1}")
        for result in values.get("result") or []:
            ranks = _ranks(_object(result, f"{where}.annotations[{number}].result"), names, where)
            if ranks is not None:
                yield ForeignRanking(author, ranks)
                break


def _ranks(result: Mapping[str, Any], names: list[str], where: str) -> tuple[int, ...] | None:
    """Return the ranks of a result; None for results of other tags."""
    value = _object(result.get("value") or {}, f"{where}.value")
    if result.get("type") == "pairwise" and value.get("selected") in _SIDES:
        return (1, 2) if value["selected"] == _SIDES[0] else (2, 1)
    if result.get("type") == "choices" and value.get("choices") == [_TIE]:
        return (1, 1)
    if result.get("type") != "ranker":
        return None
    buckets = _object(value.get("ranker"), f"{where}.value.ranker")
    places: dict[str, int] = {}
    if len(buckets) == 1:
        # Without buckets the items of the only list are in order.
        places = {str(name): place for place, name in enumerate(next(iter(buckets.values())), start=1)}
    else:
        filled = sorted((_place(bucket), items) for bucket, items in buckets.items() if items)
        places = {str(name): place for place, (_, items) in enumerate(filled, start=1) for name in items}
    if set(places) != set(names):
        allowed = f"each of {', '.join(names)} once"
        raise InvalidInput(f"{where}.value.ranker", got=sorted(places), allowed=allowed)
    return tuple(places[name] for name in names)


def _place(bucket: str) -> int:
    if not bucket.isdecimal():
        raise InvalidInput("ranker", got=f"a bucket {bucket!r}", allowed="buckets named 1, 2 … as places")
    return int(bucket)


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(where, got=value, allowed="an object")
    return value
