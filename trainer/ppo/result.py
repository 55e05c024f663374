"""The result of PPO, `result_ppo.json`, counted from the files on disk and not from counters in memory."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.config import RunConfig
from fairlead.transports.weights.base import Ancestor, is_valid
from fairlead.types import WeightVersion
from trainer.ppo.dynamic_sampling import EVENT
from trainer.ppo.progress import Ledger, TrainingProgress
from trainer.ppo.task_records import read_journal
from trainer.results import config_hash

_SETTLING = ("trained", "dead_letter", EVENT)
"""Events of the journal that settle a task."""


def summarise(
    config: RunConfig,
    *,
    progress: TrainingProgress,
    lineage: Sequence[Ancestor],
    seconds: float,
) -> dict[str, object]:
    """Return the contents of `result_ppo.json`.

    Args:
        config: the run.
        progress: the progress in the last checkpoint. It has fewer updates than configured if a guard stopped
            the run; the tasks that were then under way are abandoned and not counted.
        lineage: incarnations that produced the final weights.
        seconds: time spent in the lineage of the final weights.
    """
    updates = progress.update
    abandoned = len(progress.open_tasks()) if updates < config.ppo.updates else 0
    found = count_outcomes(
        config.folder.ledger,
        ledger=progress.ledger,
        cursor=progress.cursor,
        lineage=lineage,
        open_tasks=abandoned,
    )
    # After a stop, the next row measures the answers of the final weights; later rows were abandoned.
    curves = [line for line in _metrics(config) if line["step"] <= updates + 1]
    first_scores = found.scores.get(0, ())
    last_scores = found.scores.get(updates - 1, ())
    return {
        "updates": updates,
        "episodes": found.episodes,
        "tasks_dispatched": progress.cursor - abandoned,
        "tasks_trained": found.trained,
        "tasks_duplicated": found.duplicated,
        "tasks_lost": found.lost,
        "dead_letters": found.dead_letters,
        **({"tasks_no_signal": found.no_signal} if config.ppo.dynamic_sampling else {}),
        "proxy_first": _mean(first_scores),
        "proxy_last": _mean(last_scores),
        "kl": curves[-1].get("kl") if curves else None,
        "mismatch_max": _largest([line["mismatch_max"] for line in curves if "mismatch_max" in line]),
        "tokens": sum(line.get("tokens") or 0.0 for line in curves),
        "seconds": seconds,
        "incarnations": len(lineage),
        "config_hash": config_hash("ppo", config),
    }


@dataclass(frozen=True, slots=True)
class OutcomeCounts:
    """What the journal says about the lineage of the final weights."""

    trained: int
    """Tasks trained on."""
    episodes: int
    """Their rollouts."""
    dead_letters: int
    """Tasks that ended as a dead letter."""
    no_signal: int
    """Tasks from whose answers nothing could be learnt."""
    duplicated: int
    """Outcomes that counted although their task had already counted."""
    lost: int
    """Tasks that are not open and have no outcome, or an outcome that contradicts the ledger."""
    scores: Mapping[int, tuple[float, ...]]
    """Scores of the answered tasks, those without signal included, by update; of a group the mean."""


def count_outcomes(
    path: Path, *, ledger: Ledger, cursor: int, lineage: Sequence[Ancestor], open_tasks: int = 0
) -> OutcomeCounts:
    """Count the outcomes in the lineage of the final weights and compare them with the ledger.

    `fairlead audit` counts independently and compares; the two share no code, so that a mistake in one of
    them is found.

    Args:
        path: the journal.
        ledger: the ledger of the last checkpoint.
        cursor: the first task that was not dispatched.
        lineage: incarnations that produced the final weights.
        open_tasks: how many tasks below the cursor may lack an outcome, because the run was stopped while
            they were under way.
    """
    outcomes: dict[int, str] = {}
    times: Counter[int] = Counter()
    samples: dict[int, int] = {}
    scores: dict[int, list[float]] = {}
    for line in read_journal(path):
        made = WeightVersion(int(line["incarnation"]), int(line["update"]) + 1)
        if line["event"] not in _SETTLING or not is_valid(made, lineage):
            continue
        task_id = int(line["task"])
        outcomes[task_id] = line["event"]
        times[task_id] += 1
        if line["event"] != "dead_letter":
            samples[task_id] = int(line.get("samples", 1))
            scores.setdefault(int(line["update"]), []).append(float(line["score"]))
    right = sum(
        outcomes.get(task_id) == _event(ledger, task_id) and ledger.is_settled(task_id)
        for task_id in range(cursor)
    )
    return OutcomeCounts(
        trained=sum(event == "trained" for event in outcomes.values()),
        episodes=sum(samples[task_id] for task_id, event in outcomes.items() if event == "trained"),
        dead_letters=sum(event == "dead_letter" for event in outcomes.values()),
        no_signal=sum(event == EVENT for event in outcomes.values()),
        duplicated=sum(times.values()) - len(times),
        lost=cursor - open_tasks - right,
        scores={update: tuple(values) for update, values in scores.items()},
    )


def _event(ledger: Ledger, task_id: int) -> str:
    """Return the event in the journal that agrees with the ledger."""
    if task_id in ledger.dead:
        return "dead_letter"
    return EVENT if task_id in ledger.no_signal else "trained"


def _largest(values: Sequence[float | None]) -> float | None:
    """Return the largest value; None for none, or if one was not finite, which is null in the file."""
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _metrics(config: RunConfig) -> list[dict[str, Any]]:
    path = config.folder.metrics("ppo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]
