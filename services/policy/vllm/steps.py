"""vLLM's decoding steps as metrics of the policy service, and as signs of life for the watchdog."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fairlead import metrics


class StepRecorder:
    """Implements the part of vLLM's `StatLoggerBase` that it calls after every step."""

    def __init__(self, policy_metrics: metrics.PolicyMetrics) -> None:
        self._metrics = policy_metrics
        self._last = time.monotonic()
        self.tokens_per_second = 0.0
        """Tokens per second, averaged over recent steps."""
        self.on_step: Callable[[], None] | None = None
        """Called after every step."""

    def __call__(self, vllm_config: object, engine_index: int = 0) -> StepRecorder:
        """Serve as vLLM's factory of stat loggers."""
        return self

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: object, **__: object) -> None:  # noqa: ANN401
        """Count a step; called by vLLM in the event loop."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        if iteration_stats is not None:
            tokens = iteration_stats.num_generation_tokens
            self._metrics.tokens.inc(tokens)
            self._metrics.steps.inc()
            # After a pause, the interval says nothing about the speed.
            if 0 < seconds < 1:
                self.tokens_per_second += 0.1 * (tokens / seconds - self.tokens_per_second)
        if self.on_step is not None:
            self.on_step()

    def log_engine_initialized(self) -> None:
        """Required by vLLM."""

    def log(self) -> None:
        """Required by vLLM."""

    def record_sleep_state(self, is_awake: int = 0, level: int = 0) -> None:
        """Required by vLLM."""

    def record_admission_rejection(self, reason: str) -> None:
        """Required by vLLM."""
