"""Rankings as records of Argilla 2, and such records as tasks and rankings.

A record is what `argilla.Record.from_dict` reads and `to_dict` writes. Its dataset has the field `prompt`,
the fields `response-1` to `response-K`, and a ranking question `ranking` over them; a dataset has one K, so
records of different K belong into different datasets (`metadata.answers`).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fairlead.errors import InvalidInput
from services.feedback.exports.incoming import ForeignRanking, Incoming
from services.feedback.exports.lines import Values, as_line, prompt_of, readable, text_at, turns_of
from services.feedback.store.judged import Judged
from services.feedback.store.records import NewAnswer, NewPrompt, NewTask, Task

QUESTION = "ranking"
"""Name of the ranking question."""
_LABELERS = uuid.UUID("5f0e6d0c-9a3b-5c1d-8e55-3d1f7c6a2b10")
"""Namespace of the ids of labelers: Argilla's users have UUIDs."""
_FIELD = "response-{}"
_MAX_ANSWERS = 50
"""Most options of a ranking question of Argilla."""


def records(judged: Iterable[Judged]) -> Iterator[Values]:
    """Yield a record for each task, with a response of each labeler.

    Values have ranks, as Argilla's server keeps them, so ties stay ties. A prompt of several messages is
    JSON.
    """
    tasks: dict[str, list[Judged]] = {}
    for one in judged:
        if "ranks" in (one.entry.body or {}):
            tasks.setdefault(one.task.id, []).append(one)
    for several in tasks.values():
        yield _record(several[0].task, several)


def from_records(found: Iterable[Mapping[str, Any]], *, question: str = QUESTION) -> Iterator[Incoming]:
    """Yield the task and the submitted rankings of each record.

    Args:
        found: records as `to_dict` writes them.
        question: name of the ranking question.

    Raises:
        InvalidInput: a record has no prompt, fewer than two responses, another value than a text, or ranks
            other than Argilla's; names the record.
    """
    for index, record in enumerate(found):
        where = f"records[{index}]"
        fields = _object(record.get("fields"), f"{where}.fields")
        names = _answer_fields(fields, question, record, where)
        texts = [text_at(f"{where}.fields.{name}", fields.get(name)) for name in names]
        prompt = fields.get("prompt", fields.get("instruction", fields.get("input")))
        task = NewTask(
            kind="rank",
            prompt=NewPrompt(turns_of(_unpacked(prompt), f"{where}.fields.prompt"), source="argilla"),
            answers=tuple(NewAnswer(text) for text in texts),
            overlap=max(1, len(_responses(record, question, where))),
        )
        rankings = tuple(
            ForeignRanking(author, _ranks(value, names, f"{where}.responses.{question}"))
            for author, value in _responses(record, question, where)
        )
        yield Incoming(task, rankings)


def settings(answers: int) -> Values:
    """Return fields and questions of a dataset for records with a number of answers."""
    names = [_FIELD.format(number) for number in range(1, answers + 1)]
    return {
        "fields": [{"name": name, "type": "text"} for name in ("prompt", *names)],
        "questions": [{"name": QUESTION, "type": "ranking", "values": names}],
    }


def _record(task: Task, several: list[Judged]) -> Values:
    names = {answer: _FIELD.format(number) for number, answer in enumerate(task.answers, start=1)}
    prompt = prompt_of(several[0].turns)
    fields = {"prompt": prompt if isinstance(prompt, str) else as_line({"messages": prompt})}
    fields |= {name: readable(several[0].answers[answer].text) for answer, name in names.items()}
    responses = []
    for one in several:
        ranks = (one.entry.body or {})["ranks"]
        ordered = sorted(task.answers, key=lambda answer: ranks[answer])
        responses.append(
            {
                "value": [{"value": names[answer], "rank": ranks[answer]} for answer in ordered],
                "user_id": str(uuid.uuid5(_LABELERS, one.pseudonym)),
                "status": "submitted",
            }
        )
    return {
        "id": task.id,
        "fields": fields,
        "metadata": {
            "answers": len(task.answers),
            "round": task.round,
            "why": task.why,
            "labelers": [one.pseudonym for one in several],
        },
        "suggestions": {},
        "responses": {QUESTION: responses},
        "vectors": {},
    }


def _responses(record: Mapping[str, Any], question: str, where: str) -> list[tuple[str, object]]:
    """Return authors and values of the responses that are submitted."""
    given = _object(record.get("responses") or {}, f"{where}.responses").get(question) or []
    labelers = _object(record.get("metadata") or {}, f"{where}.metadata").get("labelers") or []
    known = {str(uuid.uuid5(_LABELERS, str(name))): str(name) for name in labelers}
    found = []
    for number, response in enumerate(given):
        values = _object(response, f"{where}.responses.{question}[{number}]")
        if (values.get("status") or "submitted") == "submitted":
            author = text_at(f"{where}.responses.{question}[{number}].user_id", values.get("user_id"))
            found.append((known.get(author, author), values.get("value")))
    return found


def _ranks(value: object, names: list[str], where: str) -> tuple[int, ...]:
    """Return the ranks of answers from options with ranks, or from options in order."""
    if not isinstance(value, list):
        raise InvalidInput(where, got=value, allowed="an array of the options")
    ranks: dict[str, int] = {}
    for place, option in enumerate(value, start=1):
        if isinstance(option, str):
            ranks[option] = place
        else:
            values = _object(option, where)
            rank = values.get("rank", place)
            if isinstance(rank, bool) or not isinstance(rank, int):
                raise InvalidInput(f"{where}.rank", got=rank, allowed="a whole number")
            ranks[text_at(f"{where}.value", values.get("value"))] = rank
    if set(ranks) != set(names):
        raise InvalidInput(where, got=sorted(ranks), allowed=f"each of {', '.join(names)} once")
    order = {rank: place for place, rank in enumerate(sorted(set(ranks.values())), start=1)}
    return tuple(order[ranks[name]] for name in names)


def _answer_fields(
    fields: Mapping[str, Any], question: str, record: Mapping[str, Any], where: str
) -> list[str]:
    """Return the names of the fields with answers: those that a response ranks, or `response…` in order."""
    for _, value in _responses(record, question, where):
        if isinstance(value, list):
            named = [
                option if isinstance(option, str) else _object(option, where).get("value") for option in value
            ]
            if len(named) > 1 and all(isinstance(name, str) and name in fields for name in named):
                return sorted((str(name) for name in named), key=_number)
    names = sorted((name for name in fields if name.startswith("response")), key=_number)
    if not 2 <= len(names) <= _MAX_ANSWERS:
        raise InvalidInput(
            f"{where}.fields",
            got=", ".join(fields) or "nothing",
            allowed="prompt, response-1, response-2 and so on",
        )
    return names


def _number(name: str) -> tuple[int, str]:
    digits = "".join(letter for letter in name if letter.isdigit() and letter.isascii())
    return int(digits[:9] or 0), name


def _unpacked(prompt: object) -> object:
    """Return the messages of a prompt that is JSON, or the prompt itself."""
    if isinstance(prompt, str) and prompt.startswith('{"messages": ['):
        try:
            return json.loads(prompt)["messages"]
        except ValueError:
            return prompt
    return prompt


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(where, got=value, allowed="an object")
    return value
