"""The data files of the rounds of a run, as JSON lines, in addition to the files that every run has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.data.chat import Chat, Prompt
from fairlead.local.serving import GeneratedAnswer
from fairlead.types import Message


@dataclass(frozen=True, slots=True)
class RoundFiles:
    """Paths of the files."""

    root: Path
    """The folder `data/` in the run's folder."""

    @property
    def answers_sft(self) -> Path:
        """Answers of the SFT policy to the evaluation prompts."""
        return self.root / "answers_sft.jsonl"

    def of_round(self, number: int, name: str) -> Path:
        """Return the path of a file of one round: tasks, rankings, fresh_rankings, answers or scores."""
        return self.root / f"round-{number}" / f"{name}.jsonl"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    aside.replace(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_answers(path: Path, groups: Iterable[Sequence[GeneratedAnswer]]) -> None:
    """Write one line with the answers to each prompt."""
    write_rows(
        path,
        (
            {
                "prompt": prompt_json(group[0].prompt),
                "answers": [{"text": a.text, "ended": a.ended} for a in group],
            }
            for group in groups
        ),
    )


def read_answers(path: Path) -> list[list[GeneratedAnswer]]:
    """Read a file that `write_answers` wrote."""
    return [
        [
            GeneratedAnswer(prompt_from_json(row["prompt"]), answer["text"], answer["ended"])
            for answer in row["answers"]
        ]
        for row in read_rows(path)
    ]


def prompt_json(prompt: Prompt) -> object:
    """Return a prompt as data files have it: text, or a list of messages."""
    if isinstance(prompt, str):
        return prompt
    return [{"role": turn.role, "content": turn.content} for turn in prompt.messages]


def prompt_from_json(value: str | list[dict[str, str]]) -> Prompt:
    """Return the prompt that `prompt_json` wrote."""
    if isinstance(value, str):
        return value
    return Chat(tuple(Message(role=turn["role"], content=turn["content"]) for turn in value))
