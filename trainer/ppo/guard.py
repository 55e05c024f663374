"""Check every update for signs of reward hacking: which signal crossed which of its limits.

The rollouts of an update are compared with those of the first ones; this baseline is part of the checkpoint.
The guard only decides that a run should stop; the trainer ends it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairlead.config.guard import GuardSection
from fairlead.errors import CorruptCheckpoint
from fairlead.metrics import TrainerMetrics
from trainer.ppo import signals
from trainer.ppo.batch import RolloutBatch

logger = logging.getLogger(__name__)

LEVELS = ("quiet", "warn", "stop")
"""In rising order; the index of a level is its value in the metric."""

QUANTILES = "score_quantiles"
"""Key in the reward model's result: 0.5% and 99.5% quantiles of its training scores."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A signal that crossed a limit."""

    signal: str
    """One of `signals.SIGNALS`, or `signals.OVERCONFIDENCE`."""
    update: int
    """Number of the update whose rollouts showed it, as in metrics_ppo.jsonl."""
    value: float
    """Value of the signal in that update."""
    threshold: float | None
    """The limit that it crossed; None for a value that is not finite."""
    level: str
    """`warn` or `stop`."""

    def __str__(self) -> str:
        if self.threshold is None:
            return f"{self.signal} is {self.value:.3g} at update {self.update}, which is not finite"
        side = "above" if self.value > self.threshold else "below"
        return f"{self.signal} is {self.value:.3g} at update {self.update}, {side} {self.threshold:g}"


class Guard:
    """The signals of one run and their limits."""

    def __init__(
        self,
        section: GuardSection,
        *,
        baseline_updates: int = 1,
        quantiles: tuple[float, float] | None = None,
        metrics: TrainerMetrics | None = None,
    ) -> None:
        """
        Args:
            section: the limits and what happens at them.
            baseline_updates: number of first updates that later ones are compared with. The batches that an
                asynchronous run starts with must all be in it, because the first of them holds the answers
                that ended first, which are short.
            quantiles: of the reward model's scores in its training; None: `scores_outside` is not measured.
            metrics: exports the level of every signal.
        """
        self._section = section
        self._baseline_updates = baseline_updates
        self._quantiles = quantiles
        self._metrics = metrics
        self._first: dict[str, float] | None = None
        self._first_updates = 0
        self._levels: dict[str, str] = {}
        self._alerts: list[Alert] = []
        self._stop: Alert | None = None

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Every alert so far, in order."""
        return tuple(self._alerts)

    @property
    def stopped_by(self) -> Alert | None:
        """The alert that ends the run; None while it may continue."""
        return self._stop

    def judge(
        self,
        batch: RolloutBatch,
        figures: Mapping[str, float],
        *,
        update: int,
        overconfidence: float | None = None,
    ) -> dict[str, float]:
        """Measure the signals of an update, log those that change their level, and return them as figures.

        Args:
            batch: the rollouts of the update.
            figures: the figures of its learning, see `signals.measure`.
            update: number of the update, from 1.
            overconfidence: the reward model's, measured on fresh labels; None without them.

        Returns:
            Values by `guard_<signal>`.
        """
        now = signals.measure(batch, figures, quantiles=self._quantiles)
        if self._first_updates < self._baseline_updates:
            finite = {name: value for name, value in now.items() if math.isfinite(value)}
            self._first = signals.mean(self._first, finite) if self._first else finite
            self._first_updates += 1
        complete = self._first_updates >= self._baseline_updates
        found = signals.values(now, (self._first or {}) if complete else {})
        if overconfidence is not None:
            found[signals.OVERCONFIDENCE] = overconfidence
        if self._section.action != "off":
            for signal, value in found.items():
                self._judge_signal(signal, value, update)
        return {f"guard_{signal}": value for signal, value in found.items()}

    def state(self) -> dict[str, object]:
        """Return the state for the checkpoint."""
        return {
            "first": self._first,
            "first_updates": self._first_updates,
            "levels": self._levels,
            "alerts": [asdict(alert) for alert in self._alerts],
        }

    def load_state(self, value: object) -> None:
        """Restore what `state` returned; None, from a checkpoint without a guard, changes nothing.

        Raises:
            CorruptCheckpoint: if the value has another form.
        """
        if value is None:
            return
        try:
            state: Any = value
            first = state["first"]
            self._first = None if first is None else {str(k): float(v) for k, v in first.items()}
            # Older checkpoints hold a complete baseline and do not say of how many updates.
            complete = 0 if first is None else self._baseline_updates
            self._first_updates = int(state.get("first_updates", complete))
            self._levels = {str(signal): str(level) for signal, level in state["levels"].items()}
            # In JSON a number that is not finite is null.
            self._alerts = [
                Alert(**{**alert, "value": math.nan if alert["value"] is None else alert["value"]})
                for alert in state["alerts"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptCheckpoint(f"the checkpoint has an invalid guard: {error!r}") from error

    def _judge_signal(self, signal: str, value: float, update: int) -> None:
        level, limit = self._section.judge(signal, value)
        if self._metrics is not None:
            self._metrics.guard.labels(signal=signal).set(LEVELS.index(level))
        if level == self._levels.get(signal, "quiet"):
            return
        self._levels[signal] = level
        if level == "quiet":
            logger.info("guard: %s is back within its limits at update %d: %.3g", signal, update, value)
            return
        alert = Alert(signal, update, value, limit, level)
        self._alerts.append(alert)
        if self._metrics is not None:
            self._metrics.guard_crossings.labels(signal=signal, level=level).inc()
        logger.log(logging.ERROR if level == "stop" else logging.WARNING, "guard: %s", alert)
        if level == "stop" and self._section.action == "stop" and self._stop is None:
            self._stop = alert


def read_quantiles(result: Path) -> tuple[float, float] | None:
    """Return the score quantiles in the reward model's result file; None, with a log line, without them."""
    try:
        low, high = json.loads(result.read_text(encoding="utf-8"))[QUANTILES]
        return float(low), float(high)
    except (OSError, ValueError, KeyError, TypeError):
        logger.info("guard: %s has no %s: the signal scores_outside is not measured", result, QUANTILES)
        return None
