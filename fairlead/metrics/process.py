"""Metrics of every process: waits, readiness, GPU memory, build and run, and calls to services."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from fairlead import watchdog
from fairlead.config import RunConfig
from fairlead.metrics.series import ReadMetric, make_series
from fairlead.rpc.call_counts import CALLS

COMMIT = "FAIRLEAD_COMMIT"
"""Variable with the commit of the source that an image was built from."""
_RECIPE = ("model", "data", "sft", "reward_model", "preference", "ppo", "sampling")
"""Sections of the configuration that decide the result of a run on any machine."""


class ProcessMetrics:
    """Every process."""

    def __init__(
        self, registry: CollectorRegistry = REGISTRY, *, ready: Callable[[], bool] = lambda: False
    ) -> None:
        """
        Args:
            registry: gets the metrics.
            ready: whether the process is ready, as /readyz reports it; called at every scrape.
        """
        self.waiting_seconds = Gauge(
            "fairlead_process_waiting_seconds",
            "Age in seconds of the longest wait of each kind: "
            + ", ".join(watchdog.KINDS)
            + "; 0 if there is none.",
            ["what"],
            registry=registry,
        )
        for kind in watchdog.KINDS:
            # Read from the watchdog at every scrape.
            self.waiting_seconds.labels(what=kind).set_function(partial(watchdog.PROCESS.seconds, kind))
        self.ready = Gauge(
            "fairlead_process_ready",
            "1 while the process is ready, as /readyz reports it.",
            registry=registry,
        )
        self.ready.set_function(lambda: float(ready()))
        self.gpu_memory_bytes = ReadMetric(
            "fairlead_process_gpu_memory_bytes",
            "Memory of the process on its GPUs, by kind: allocated, reserved, peak. No series without a GPU.",
            ["kind"],
            _gpu_memory,
            registry=registry,
        )


class TraceMetrics:
    """Traces of every process that sends them."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.spans = Counter(
            "fairlead_traces_spans_total",
            "Spans of a process that traces, by result: sent, dropped (too many waited, or it ended), "
            "failed (the backend did not take them).",
            ["result"],
            registry=registry,
        )
        make_series(self.spans, result=("sent", "dropped", "failed"))

    def count(self, result: str, number: int) -> None:
        """Count spans."""
        self.spans.labels(result=result).inc(number)


class RunMetrics:
    """The build and the run of every process; each is 1, and its labels are the information."""

    def __init__(self, config: RunConfig, *, stage: str = "", registry: CollectorRegistry = REGISTRY) -> None:
        """
        Args:
            config: the configuration of the process.
            stage: the stage of the trainer; empty in a service.
            registry: gets the metrics.
        """
        self.build = Gauge(
            "fairlead_build_info",
            "1; the labels are the version of Fairlead, its commit (of an image or a checkout), and the "
            "versions of Python and torch.",
            ["version", "commit", "python", "torch"],
            registry=registry,
        )
        self.build.labels(
            version=_version("fairlead-rlhf"),
            commit=_commit(),
            python=platform.python_version(),
            torch=_version("torch"),
        ).set(1)
        self.run = Gauge(
            "fairlead_run_info",
            "1; the labels are the run and, in a trainer, its stage, a hash of the settings that decide its "
            "result, and the base model.",
            ["run", "stage", "config", "model"],
            registry=registry,
        )
        # In a cluster a service has only the settings that it reads, and keeps running when others change.
        recipe = recipe_hash(config) if stage else ""
        model = (config.model.path or "scratch") if stage else ""
        self.run.labels(run=config.name, stage=stage, config=recipe, model=model).set(1)


class ClientMetrics:
    """Calls from this process to the replicas of services."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.handled = ReadMetric(
            "grpc_client_handled_total",
            "Attempts completed, by status. A request of a GenerateBatch counts as a call of Generate.",
            ["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
            CALLS.handled,
            registry=registry,
        )
        self.retries = ReadMetric(
            "fairlead_client_retries_total",
            "Attempts that were repeated, by service and by the status of the attempt before.",
            ["service", "reason"],
            CALLS.retries,
            registry=registry,
        )
        self.hedges = ReadMetric(
            "fairlead_client_hedges_total",
            "Late calls by service and result: sent to another replica as well (sent), and answered by that "
            "one first (won).",
            ["service", "result"],
            CALLS.hedges,
            registry=registry,
        )
        self.budget_exhausted = ReadMetric(
            "fairlead_client_budget_exhausted_total",
            "Calls that failed because the budget of retries was used up.",
            ["service"],
            CALLS.budget_exhausted,
            registry=registry,
        )


class TlsMetrics:
    """The certificate of a server."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.failures = Counter(
            "fairlead_tls_reload_failures_total",
            "Changes of TLS files that could not be loaded; the previous ones stayed in use.",
            registry=registry,
        )


def recipe_hash(config: RunConfig) -> str:
    """Return a hash of the settings that decide the result of a run: equal in all of its trainers."""
    sections = {name: getattr(config, name).model_dump(mode="json") for name in _RECIPE}
    text = json.dumps({"seed": config.seed, **sections}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _commit() -> str:
    """Return the commit of the image or of the checkout; empty if neither is known."""
    if found := os.environ.get(COMMIT):
        return found
    git = Path(__file__).parents[2] / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if head.startswith("ref: "):
            head = (git / head.removeprefix("ref: ")).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return head


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _gpu_memory() -> dict[tuple[str, ...], float]:
    """Return the memory of this process by kind; empty if it has not used a GPU through torch."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return {}
    devices = range(torch.cuda.device_count())
    return {
        ("allocated",): float(sum(torch.cuda.memory_allocated(device) for device in devices)),
        ("reserved",): float(sum(torch.cuda.memory_reserved(device) for device in devices)),
        ("peak",): float(sum(torch.cuda.max_memory_allocated(device) for device in devices)),
    }
