"""Judgments as `fairlead.data` reads them: K-wise rankings, pairs as TRL reads them, demonstrations, prompts.

The readers ignore keys that they do not know, which say where a line comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from services.feedback.exports.lines import Values, as_line, prompt_of, readable
from services.feedback.store.judged import Judged


def rankings(judged: Iterable[Judged]) -> Iterator[Values]:
    """Yield a line for each ranking, and for each edit, which its author prefers to the original.

    The keys besides prompt and responses are those of `provenance`; `shown` has the answers in the order in
    which the labeler saw them, and each response the id of its `answer`.
    """
    for one in judged:
        body = _body(one)
        if "ranks" in body:
            responses = [
                {
                    "text": readable(one.answers[answer].text),
                    "rank": body["ranks"][answer],
                    "answer": answer,
                    "rating": body["ratings"].get(answer),
                    "flags": body["flags"].get(answer, []),
                }
                for answer in one.task.answers
            ]
            more: Values = {"strength": body["strength"], "shown": list(body["shown"] or ())}
        elif body.get("base") and readable(body["text"]) != readable(one.answers[body["base"]].text):
            original = one.answers[body["base"]]
            responses = [
                {
                    "text": readable(body["text"]),
                    "rank": 1,
                    "answer": one.entry.id,
                    "rating": None,
                    "flags": [],
                },
                {
                    "text": readable(original.text),
                    "rank": 2,
                    "answer": original.id,
                    "rating": None,
                    "flags": [],
                },
            ]
            # Nobody else ranked this edit, so it is a task of its own for figures of agreement.
            more = {"task": one.entry.id, "strength": None, "shown": []}
        else:
            continue
        yield {"prompt": prompt_of(one.turns), "responses": responses, **provenance(one), **more}


def pairs(judged: Iterable[Judged]) -> Iterator[Values]:
    """Yield every pair of a ranking that is not a tie; those of one ranking are adjacent.

    Prompt, chosen and rejected are messages, or texts if the prompt is plain text, as TRL reads both. The
    best is compared with all others first, so that adjacent pairs share a response and our reader joins them
    again. It must not join rankings of several people, so all first rankings of the prompts come before all
    second ones.
    """
    times: dict[str, int] = {}
    ordered_lines: list[tuple[int, Values]] = []
    for line in rankings(judged):
        prompt = as_line({"prompt": line["prompt"]})
        times[prompt] = times.get(prompt, 0) + 1
        ordered_lines.append((times[prompt], line))
    for _, line in sorted(ordered_lines, key=lambda item: item[0]):
        ordered = sorted(line["responses"], key=lambda response: response["rank"])
        plain = isinstance(line["prompt"], str)
        for place, chosen in enumerate(ordered):
            for rejected in ordered[place + 1 :]:
                if chosen["rank"] < rejected["rank"] and chosen["text"] != rejected["text"]:
                    yield {
                        "prompt": line["prompt"],
                        "chosen": _answer(chosen["text"], plain=plain),
                        "rejected": _answer(rejected["text"], plain=plain),
                        "judgment": line["judgment"],
                        "task": line["task"],
                        "labeler": line["labeler"],
                    }


def demonstrations(judged: Iterable[Judged]) -> Iterator[Values]:
    """Yield a line for each answer that a person wrote or edited, as prompt and completion."""
    for one in judged:
        if one.task.kind in ("write", "edit"):
            prompt = prompt_of(one.turns)
            text = readable(_body(one)["text"])
            completion = _answer(text, plain=isinstance(prompt, str))
            yield {"prompt": prompt, "completion": completion, **provenance(one)}


def prompts(judged: Iterable[Judged]) -> Iterator[Values]:
    """Yield every prompt once: those that people wrote, and those that they judged answers to."""
    seen = set()
    for one in judged:
        written = one.task.kind == "prompt"
        prompt = readable(_body(one)["text"]) if written else prompt_of(one.turns)
        if written and isinstance(prompt_of(one.turns), list):
            prompt = [{"role": "user", "content": prompt}]
        if str(prompt) not in seen:
            seen.add(str(prompt))
            yield {"prompt": prompt}


def provenance(one: Judged) -> Values:
    """Return where a line comes from.

    `judgment` (entry of the log), `task`, `labeler` (a pseudonym), `kind` of labeler, `cohort`, `round`,
    `why` the task was chosen, `guideline` (version), `weight_versions` that answered, `late`, `seconds`, and
    `group`, where something else than the prompt decides the side of a split. Notes stay in the store: people
    may say in them who they are.
    """
    body = _body(one)
    versions = {one.answers[answer].weight_version for answer in one.task.answers} - {""}
    return {
        "judgment": one.entry.id,
        "task": one.task.id,
        "labeler": one.pseudonym,
        "kind": one.person_kind,
        "cohort": one.cohort,
        "round": one.task.round,
        "why": one.task.why,
        "guideline": body["guideline"],
        "weight_versions": sorted(versions),
        "late": one.entry.late,
        "seconds": body["seconds"],
        "group": one.split_group,
    }


def _body(one: Judged) -> Mapping[str, Any]:
    return one.entry.body or {}


def _answer(text: str, *, plain: bool) -> str | list[Values]:
    return text if plain else [{"role": "assistant", "content": text}]
