"""The data files of the quickstart, as JSON lines, in addition to the files that every run has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.serving import GeneratedAnswer


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of the files."""

    root: Path
    """The folder `data/` in the run's folder."""

    @property
    def demonstrations(self) -> Path:
        """Demonstrations for SFT."""
        return self.root / "demonstrations.jsonl"

    @property
    def prompts(self) -> Path:
        """All questions, the prompts of PPO."""
        return self.root / "prompts.jsonl"

    @property
    def answers_sft(self) -> Path:
        """Answers of the SFT policy to the evaluation prompts."""
        return self.root / "answers_sft.jsonl"

    def of_round(self, number: int, name: str) -> Path:
        """Return the path of a file of one round: tasks, rankings, answers or scores."""
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
            {"prompt": group[0].prompt, "answers": [{"text": a.text, "ended": a.ended} for a in group]}
            for group in groups
        ),
    )


def read_answers(path: Path) -> list[list[GeneratedAnswer]]:
    """Read a file that `write_answers` wrote."""
    return [
        [GeneratedAnswer(row["prompt"], answer["text"], answer["ended"]) for answer in row["answers"]]
        for row in read_rows(path)
    ]
