"""What the quickstart keeps in its folder beside the run's own files, and the form of each as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.serving import Answer


@dataclass(frozen=True, slots=True)
class Files:
    """Paths below the run's folder."""

    root: Path
    """`data/` in the run's folder."""

    @property
    def demonstrations(self) -> Path:
        """For SFT."""
        return self.root / "demonstrations.jsonl"

    @property
    def prompts(self) -> Path:
        """All questions, for PPO."""
        return self.root / "prompts.jsonl"

    @property
    def answers_sft(self) -> Path:
        """Answers of the SFT policy to the prompts of the evaluation."""
        return self.root / "answers_sft.jsonl"

    def of_round(self, number: int, name: str) -> Path:
        """A file of one round: tasks, rankings, answers, scores."""
        return self.root / f"round-{number}" / f"{name}.jsonl"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a file of JSON lines in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    aside.replace(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_answers(path: Path, groups: Iterable[Sequence[Answer]]) -> None:
    """A line for the answers to each prompt."""
    write_rows(
        path,
        (
            {"prompt": group[0].prompt, "answers": [{"text": a.text, "ended": a.ended} for a in group]}
            for group in groups
        ),
    )


def read_answers(path: Path) -> list[list[Answer]]:
    """What `write_answers` wrote."""
    return [
        [Answer(row["prompt"], answer["text"], answer["ended"]) for answer in row["answers"]]
        for row in read_rows(path)
    ]
