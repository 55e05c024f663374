"""Reports of a running stage: progress, metrics, phases, experiment logs, Prometheus.

Every training loop writes to it; no stage reads it back.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from fairlead import watchdog
from fairlead.config import RunFolder
from fairlead.metrics import ProgressMetrics
from trainer import durable
from trainer.experiments.base import ExperimentLog

Doing = Callable[[str, int, int], None]
"""Reports what is done, how much of it and of how much: see `Tracker.doing`."""
PROGRESS_SECONDS = 0.2
"""Within a phase, the progress file is replaced at most this often."""


class Tracker:
    """Writes progress.json, metrics_<stage>.jsonl, phases.jsonl and experiment logs of one stage."""

    def __init__(
        self,
        stage: str,
        folder: RunFolder,
        *,
        total: int,
        first_step: int = 0,
        incarnation: int = 0,
        logs: Sequence[ExperimentLog] = (),
        metrics: ProgressMetrics | None = None,
        on_phase: Callable[[str, float, float], None] | None = None,
    ) -> None:
        """Start tracking; metrics that an interrupted run wrote for steps after `first_step` are dropped.

        Args:
            stage: such as `ppo`.
            folder: of the run.
            total: steps of the stage.
            first_step: where the stage continues.
            incarnation: of a trainer of PPO.
            logs: also get the figures of every step, and are closed with the tracker.
            metrics: of this process.
            on_phase: called at the end of every phase with its name, beginning and end in Unix time.
        """
        self._on_phase = on_phase
        self._stage = stage
        self._folder = folder
        self._total = total
        self._first_step = first_step
        self._step = first_step
        self._incarnation = incarnation
        self._metrics = metrics
        self._phase = "start"
        self._since = time.time()
        self._seconds: dict[str, float] = {}
        self._waiting_for: str | None = None
        self._activity = ""
        self._doing: str | None = None
        self._figures: dict[str, float] = {}
        self._begun = time.monotonic()
        self._written = 0.0
        folder.root.mkdir(parents=True, exist_ok=True)
        _drop_after(folder, stage, first_step)
        self._logs = logs
        self._waits = contextlib.ExitStack()
        self._wait: watchdog.Wait | None = None
        if metrics is not None:
            metrics.set_progress(first_step, total)
        self.phase("start")

    @property
    def step(self) -> int:
        """The last step that was recorded."""
        return self._step

    def phase(self, name: str, *, waiting_for: str | None = None) -> None:
        """Enter a phase of `metrics.PHASES`; the previous one is written to phases.jsonl with its times."""
        now = time.time()
        if name != self._phase:
            self._close_phase(now)
            self._phase = name
            self._since = now
        self._waiting_for = waiting_for
        self._activity, self._doing = "", None
        self._waits.close()
        # Waiting for rollouts has its own limit, and extends this one; a stage that is done does not wait.
        waiting = watchdog.PROCESS.waiting("phase", name, limited=name != "done")
        self._wait = self._waits.enter_context(waiting)
        if self._metrics is not None:
            self._metrics.set_phase(name, now)
        self._write_progress(force=True)

    def waiting_for(self, what: str) -> None:
        """Report what the current phase waits for."""
        self._waiting_for = what
        if self._wait is not None:
            self._wait.detail = f"{self._phase}: {what}"
            self._wait.extend()
        self._write_progress(force=False)

    def doing(self, what: str, done: int = 0, total: int = 0) -> None:
        """Report what a phase without steps does, with how much of it is done if `total` is given."""
        begins = what != self._activity
        self._activity = what
        self._doing = f"{what}, {done:,} of {total:,}" if total else what
        if self._wait is not None:
            self._wait.restart()
        self._write_progress(force=begins)

    def seconds_per_phase(self) -> dict[str, float]:
        """Return the seconds spent in every phase since the last call, and start counting again."""
        now = time.time()
        spent = dict(self._seconds)
        spent[self._phase] = spent.get(self._phase, 0.0) + now - self._since
        self._close_phase(now)
        self._since = now
        self._seconds = {}
        return spent

    def record(self, step: int, figures: Mapping[str, float], *, scalars: bool = True) -> None:
        """Record a finished step: a line of metrics, experiment logs, Prometheus metrics, progress."""
        self._step = step
        self._activity, self._doing = "", None
        if self._wait is not None:
            self._wait.restart()
        self._figures.update(figures)
        line = {"step": step, "time": time.time(), "incarnation": self._incarnation, **figures}
        with self._folder.metrics(self._stage).open("a", encoding="utf-8") as file:
            file.write(durable.dumps(line) + "\n")
        if scalars:
            for log in self._logs:
                log.record(step, figures)
        if self._metrics is not None:
            self._metrics.set_statistics(figures)
            self._metrics.set_progress(step, self._total)
        self._write_progress(force=False)

    def close(self, *, failed: bool = False) -> None:
        """End the current phase and flush; `failed` if the stage has not come to its end."""
        self._waits.close()
        now = time.time()
        self._close_phase(now)
        if self._metrics is not None:
            self._metrics.set_phase("", now)
        self._write_progress(force=True)
        for log in self._logs:
            log.close(failed=failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)

    def _close_phase(self, now: float) -> None:
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        line = {
            "stage": self._stage,
            "phase": self._phase,
            "start": self._since,
            "end": now,
            "step": self._step,
            "incarnation": self._incarnation,
        }
        with self._folder.phases.open("a", encoding="utf-8") as file:
            file.write(durable.dumps(line) + "\n")
        if self._on_phase is not None:
            self._on_phase(self._phase, self._since, now)

    def _write_progress(self, *, force: bool) -> None:
        now = time.monotonic()
        if not force and now - self._written < PROGRESS_SECONDS:
            return
        self._written = now
        done = self._step - self._first_step
        left = self._total - self._step
        # After the last step the estimate knows nothing of what is left.
        eta = (now - self._begun) / done * left if done > 0 and (left or self._phase == "done") else None
        progress = {
            "stage": self._stage,
            "phase": self._phase,
            "step": self._step,
            "total": self._total,
            "figures": self._figures,
            "since": self._since,
            "waiting_for": self._waiting_for,
            "doing": self._doing,
            "eta_seconds": eta,
        }
        durable.write_json(self._folder.progress, progress, durable=False)


class SilentTracker(Tracker):
    """The tracker of a rank that reports nothing, because rank 0 does."""

    def __init__(self, *, first_step: int = 0) -> None:
        """Start at a step."""
        self._step = first_step

    def phase(self, name: str, *, waiting_for: str | None = None) -> None:
        """Do nothing."""

    def waiting_for(self, what: str) -> None:
        """Do nothing."""

    def doing(self, what: str, done: int = 0, total: int = 0) -> None:
        """Do nothing."""

    def record(self, step: int, figures: Mapping[str, float], *, scalars: bool = True) -> None:
        """Remember the step."""
        self._step = step

    def close(self, *, failed: bool = False) -> None:
        """Do nothing."""


def write_waiting(stage: str, folder: RunFolder, *, total: int, waiting_for: str) -> None:
    """Write the progress of a stage that cannot start yet."""
    progress = {
        "stage": stage,
        "phase": "start",
        "step": 0,
        "total": total,
        "figures": {},
        "since": time.time(),
        "waiting_for": waiting_for,
        "eta_seconds": None,
    }
    durable.write_json(folder.progress, progress, durable=False)


def _drop_after(folder: RunFolder, stage: str, step: int) -> None:
    """Keep the metrics of an interrupted run only up to the step from which it resumes."""
    path = folder.metrics(stage)
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step and step > 0:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # a line cut short by a crash
    replacement = path.with_name(f".{path.name}")
    replacement.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    replacement.replace(path)
