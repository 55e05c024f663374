"""The files of a run, read for its report: results, curves, phases.

A report can be written at any time, so a missing file counts as empty. Knows files, not pages.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fairlead.config import RunFolder
from fairlead.evaluation.card import FILE as CARD
from fairlead.local.json_lines import JsonLines, Row

QUEUE_FIGURES = ("tasks_dispatched", "tasks_trained", "tasks_duplicated", "tasks_lost", "dead_letters")
"""Keys of the balance of the queue in `result_ppo.json`."""
_ALL_QUEUE_FIGURES = (*QUEUE_FIGURES, "tasks_no_signal")
"""Those, and the one of runs with dynamic sampling."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The contents of a run's folder that a report needs."""

    name: str
    """The folder's name."""
    sft: Row
    """Result of supervised fine-tuning; empty if there is none."""
    reward_model: Row
    """Result of reward-model training; empty if there is none."""
    ppo: Row
    """Result of PPO; empty until it has ended."""
    evaluation: Row
    """Result of an evaluation; empty if there is none."""
    updates: tuple[Row, ...]
    """One row of metrics per PPO update, in order."""
    phases: tuple[Row, ...]
    """Phases of PPO with their start and end."""
    rollout_samples: tuple[Row, ...] = ()
    """Samples of the answers of every update, with their scores."""
    preference: Row = field(default_factory=dict)
    """Result of the preference stage; empty if there is none."""
    preference_steps: tuple[Row, ...] = ()
    """One row of metrics per step of the preference stage, and one per epoch with figures of held-out
    data."""
    card: Row = field(default_factory=dict)
    """Card of `fairlead evaluate`; empty if there is none."""
    guard: Row = field(default_factory=dict)
    """`[guard]` of the run's configuration; empty if it is not known."""
    steps: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    """Loss and accuracy of every step of `sft` and `reward_model`, by stage."""

    @property
    def queue(self) -> dict[str, int]:
        """The balance of the queue; empty before PPO has ended."""
        return {name: int(self.ppo[name]) for name in _ALL_QUEUE_FIGURES if name in self.ppo}

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Return the updates that have a metric, and its values there."""
        found = [
            (float(row["update"]), float(row[name])) for row in self.updates if _is_number(row.get(name))
        ]
        return [x for x, _ in found], [y for _, y in found]

    def curve_names(self, prefix: str) -> list[str]:
        """Return the metrics of updates that begin with a prefix, in the order in which they first appear."""
        return list(dict.fromkeys(name for row in self.updates for name in row if name.startswith(prefix)))

    @property
    def spans(self) -> list[tuple[str, float, float]]:
        """Phases of PPO as (phase, start, end), in seconds since its first start."""
        if not self.phases:
            return []
        origin = min(float(row["start"]) for row in self.phases)
        return [(str(row["phase"]), row["start"] - origin, row["end"] - origin) for row in self.phases]

    @property
    def seconds_per_phase(self) -> dict[str, float]:
        """Seconds that PPO spent in each phase, longest first."""
        spent: dict[str, float] = {}
        for phase, start, end in self.spans:
            spent[phase] = spent.get(phase, 0.0) + end - start
        return dict(sorted(spent.items(), key=lambda item: -item[1]))


_ENDS = 512


class RecordReader:
    """Reads the record of one run again and again; files that grow are read from where they ended."""

    def __init__(self, folder: RunFolder, *, all_samples: bool = True) -> None:
        """
        Args:
            folder: of the run.
            all_samples: keep the samples of all updates instead of those of the first and the last ones.
        """
        self._folder = folder
        self._updates = JsonLines(folder.metrics("ppo"), keep=_numbered)
        self._samples = JsonLines(folder.rollout_samples, ends=None if all_samples else _ENDS)
        self._preference = JsonLines(folder.metrics("preference"))
        self._phases = JsonLines(folder.phases, keep=_phase_of_ppo)
        self._steps = {
            stage: JsonLines(folder.metrics(stage), keep=_step) for stage in ("sft", "reward_model")
        }

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Return what changes when a file of the record does."""
        folder = self._folder
        stages = ("sft", "reward_model", "preference", "ppo")
        paths = [folder.phases, folder.rollout_samples, folder.config, folder.result("evaluation")]
        paths.append(folder.evaluation / CARD)
        paths += [path for stage in stages for path in (folder.metrics(stage), folder.result(stage))]
        found = []
        for path in paths:
            try:
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size))
            except OSError:
                found.append((0, 0))
        return tuple(found)

    def read(self) -> RunRecord:
        """Read all files that exist; lines cut short by a crash are skipped."""
        folder = self._folder
        return RunRecord(
            name=folder.root.resolve().name,
            sft=_object(folder.result("sft")),
            reward_model=_object(folder.result("reward_model")),
            ppo=_object(folder.result("ppo")),
            evaluation=_object(folder.result("evaluation")),
            updates=tuple(self._updates.read()),
            rollout_samples=tuple(self._samples.read()),
            preference=_object(folder.result("preference")),
            preference_steps=tuple(self._preference.read()),
            card=_object(folder.evaluation / CARD),
            guard=_settings(folder.config).get("guard", {}),
            phases=tuple(self._phases.read()),
            steps={stage: tuple(lines.read()) for stage, lines in self._steps.items()},
        )


def read(folder: RunFolder) -> RunRecord:
    """Read the record of a run once."""
    return RecordReader(folder).read()


def joined(records: Sequence[RunRecord]) -> RunRecord:
    """Join consecutive runs: continue the numbers of updates, add up the queues, keep the last results."""
    updates: list[Row] = []
    samples: list[Row] = []
    alerts: list[Row] = []
    for record in records:
        before = len(updates)
        alerts += [{**row, "update": row["update"] + before} for row in record.ppo.get("guards", ())]
        samples += [{**row, "update": row["update"] + before} for row in record.rollout_samples]
        updates += [{**row, "update": row["update"] + before} for row in record.updates]
    queues = [record.queue for record in records]
    queue = {
        name: sum(one.get(name, 0) for one in queues) for name in _ALL_QUEUE_FIGURES if name in queues[-1]
    }
    return replace(
        records[-1],
        name=records[0].name,
        sft=records[0].sft,
        ppo={**records[-1].ppo, **queue, "guards": alerts},
        updates=tuple(updates),
        phases=tuple(row for record in records for row in record.phases),
        rollout_samples=tuple(samples),
    )


def _settings(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _numbered(row: Row) -> Row:
    return row if "update" in row else {**row, "update": row.get("step", 0)}


def _object(path: Path) -> Row:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _phase_of_ppo(row: Row) -> Row | None:
    known = row.get("stage") == "ppo" and _is_number(row.get("start")) and _is_number(row.get("end"))
    return row if known else None


def _step(row: Row) -> Row | None:
    if not _is_number(row.get("step")):
        return None
    return {name: row[name] for name in ("step", "loss", "accuracy", "member") if row.get(name) is not None}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
