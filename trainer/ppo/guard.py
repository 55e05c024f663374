"""Watches every update for reward hacking: which signal crossed which of its limits, told once per change.

Judges the rollouts of an update against those of the first; its baseline is in the checkpoint. It decides
nothing but that a run should stop; ending it is the trainer's business.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairlead import metrics
from fairlead.config.training import GuardSection
from fairlead.errors import CorruptCheckpoint
from trainer.ppo import signals
from trainer.ppo.batch import RolloutBatch

logger = logging.getLogger(__name__)

LEVELS = ("quiet", "warn", "stop")
"""In order; their places are the values of the gauge."""

QUANTILES = "score_quantiles"
"""Key of the reward model's result: [0.5%, 99.5%] quantiles of its scores of the answers it learned from."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A signal crossed a limit."""

    signal: str
    """One of `signals.SIGNALS`, or `signals.OVERCONFIDENCE`."""
    update: int
    """Number of the update, as in metrics_ppo.jsonl, whose rollouts showed it."""
    value: float
    """The signal there."""
    threshold: float
    """The limit."""
    level: str
    """`warn` or `stop`."""

    def __str__(self) -> str:
        side = "above" if self.value > self.threshold else "below"
        return f"{self.signal} is {self.value:.3g} at update {self.update}, {side} {self.threshold:g}"


class Guard:
    """The signals of one run."""

    def __init__(
        self,
        section: GuardSection,
        *,
        quantiles: tuple[float, float] | None = None,
        gauges: metrics.TrainerMetrics | None = None,
    ) -> None:
        """`quantiles` bound the reward model's training scores; without them one signal is left out."""
        self._section, self._quantiles, self._gauges = section, quantiles, gauges
        self._first: dict[str, float] | None = None
        self._levels: dict[str, str] = {}
        self._alerts: list[Alert] = []
        self._stop: Alert | None = None

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Everything that fired, in order."""
        return tuple(self._alerts)

    @property
    def stopped_by(self) -> Alert | None:
        """The alert that ends the run; None while it may go on."""
        return self._stop

    def look(
        self,
        batch: RolloutBatch,
        figures: Mapping[str, float],
        *,
        update: int,
        overconfidence: float | None = None,
    ) -> dict[str, float]:
        """Judges an update; returns its signals as figures, `guard_<signal>`.

        `overconfidence` is that of the reward model on fresh labels, where there are any.
        """
        now = signals.measure(batch, figures, quantiles=self._quantiles)
        if self._first is None:
            self._first = now
        found = signals.values(now, self._first)
        if overconfidence is not None:
            found[signals.OVERCONFIDENCE] = overconfidence
        if self._section.action != "off":
            for signal, value in found.items():
                self._judge(signal, value, update)
        return {f"guard_{signal}": value for signal, value in found.items()}

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return {
            "first": self._first,
            "levels": self._levels,
            "alerts": [asdict(alert) for alert in self._alerts],
        }

    def load_state(self, value: object) -> None:
        """Takes over what `state` gave; a checkpoint from before there were guards has none.

        Raises:
            CorruptCheckpoint: if it has another form.
        """
        if value is None:
            return
        try:
            state: Any = value
            first = state["first"]
            self._first = None if first is None else {str(k): float(v) for k, v in first.items()}
            self._levels = {str(signal): str(level) for signal, level in state["levels"].items()}
            self._alerts = [Alert(**alert) for alert in state["alerts"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptCheckpoint(f"the checkpoint's guard has an unknown form: {error}") from error

    def _judge(self, signal: str, value: float, update: int) -> None:
        level, limit = self._level(signal, value)
        if self._gauges is not None:
            self._gauges.guard.labels(signal=signal).set(LEVELS.index(level))
        if level == self._levels.get(signal, "quiet"):
            return
        self._levels[signal] = level
        if limit is None:
            logger.info("guard: %s is back within its limits at update %d: %.3g", signal, update, value)
            return
        alert = Alert(signal, update, value, limit, level)
        self._alerts.append(alert)
        logger.log(logging.ERROR if level == "stop" else logging.WARNING, "guard: %s", alert)
        if level == "stop" and self._section.action == "stop" and self._stop is None:
            self._stop = alert

    def _level(self, signal: str, value: float) -> tuple[str, float | None]:
        for level in ("stop", "warn"):
            low = getattr(self._section, f"{signal}_{level}_below", None)
            high = getattr(self._section, f"{signal}_{level}_above", None)
            if low is not None and value < low:
                return level, low
            if high is not None and value > high:
                return level, high
        return "quiet", None


def read_quantiles(result: Path) -> tuple[float, float] | None:
    """The reward model's training quantiles from its result file; None, and a line in the log, without."""
    try:
        low, high = json.loads(result.read_text(encoding="utf-8"))[QUANTILES]
        return float(low), float(high)
    except (OSError, ValueError, KeyError, TypeError):
        logger.info("guard: %s has no %s; scores_outside is left out", result, QUANTILES)
        return None
