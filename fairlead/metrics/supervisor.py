"""Metrics of the supervisor of a run on one machine."""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from fairlead.metrics.series import make_series

OUTCOMES = (0, 1, 2, 3, 4, 5, 6, 129, 130, 143)
"""Exit codes of a run that docs/architecture.md explains, and those of SIGHUP, SIGINT and SIGTERM."""
STATES = ("waiting", "starting", "ready", "restarting", "stopping", "ended")
"""States of a process."""
REASONS = ("exit", "signal", "hung", "not_ready")
"""Why a process is restarted."""


class SupervisorMetrics:
    """The supervisor of a run on one machine."""

    def __init__(self, processes: Collection[str] = (), registry: CollectorRegistry = REGISTRY) -> None:
        """
        Args:
            processes: names of the processes of the run.
            registry: gets the metrics.
        """
        self._states = dict.fromkeys(processes, "waiting")
        self.outcome = Gauge(
            "fairlead_run_outcome",
            "1 for the exit code with which the run ends, as soon as it is decided; 0 for the others.",
            ["code"],
            registry=registry,
        )
        make_series(self.outcome, code=[str(code) for code in OUTCOMES])
        self.restarts = Counter(
            "fairlead_supervisor_restarts_total",
            "Restarts of a process by reason: exit (it ended by itself), signal (it was killed), hung (it "
            "did not answer and was killed), not_ready (its start took too long).",
            ["process", "reason"],
            registry=registry,
        )
        make_series(self.restarts, process=processes, reason=REASONS)
        self.state = Gauge(
            "fairlead_supervisor_process_state",
            "1 for the state of a process: waiting, starting, ready, restarting, stopping, ended.",
            ["process", "state"],
            registry=registry,
        )
        make_series(self.state, process=processes, state=STATES)

    @property
    def all_ready(self) -> bool:
        """Whether every process is ready."""
        return all(state == "ready" for state in self._states.values())

    def set_state(self, process: str, state: str) -> None:
        """Set one state of a process to 1 and every other to 0."""
        self._states[process] = state
        for name in STATES:
            self.state.labels(process=process, state=name).set(name == state)

    def set_outcome(self, code: int) -> None:
        """Set how the run ends."""
        self.outcome.labels(code=str(code)).set(1)
