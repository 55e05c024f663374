"""Every metric name of the project, a class for each part that reports metrics.

A process creates the classes that it reports (`ServerMetrics(...)`, `TrainerMetrics(...)`) once; metrics of
other classes do not appear on its page. Names are `fairlead_<area>_<what>_<unit>`, except the gRPC ones,
which keep the names of the ecosystem. A test compares docs/metrics.md with this package.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, disable_created_metrics

from fairlead.config import RunConfig
from fairlead.metrics.edge import AccessMetrics, ServerMetrics
from fairlead.metrics.feedback import FeedbackMetrics
from fairlead.metrics.gateway import CollectMetrics, GatewayMetrics
from fairlead.metrics.loop import (
    PHASES,
    ProgressMetrics,
    StageMetrics,
    TrainerMetrics,
    WorkerMetrics,
)
from fairlead.metrics.models import BatcherMetrics, PolicyMetrics, RewardMetrics, WeightsMetrics
from fairlead.metrics.process import ClientMetrics, ProcessMetrics, RunMetrics, TlsMetrics, TraceMetrics
from fairlead.metrics.supervisor import SupervisorMetrics

__all__ = [
    "AREAS",
    "PHASES",
    "AccessMetrics",
    "BatcherMetrics",
    "ClientMetrics",
    "CollectMetrics",
    "FeedbackMetrics",
    "GatewayMetrics",
    "PolicyMetrics",
    "ProcessMetrics",
    "ProgressMetrics",
    "RewardMetrics",
    "RunMetrics",
    "ServerMetrics",
    "StageMetrics",
    "SupervisorMetrics",
    "TlsMetrics",
    "TraceMetrics",
    "TrainerMetrics",
    "WeightsMetrics",
    "WorkerMetrics",
    "create",
]

# They would be a tenth of all series, and nobody asks for them.
disable_created_metrics()  # type: ignore[no-untyped-call]

AREAS = (
    ProcessMetrics,
    RunMetrics,
    ClientMetrics,
    TraceMetrics,
    ServerMetrics,
    AccessMetrics,
    TlsMetrics,
    BatcherMetrics,
    RewardMetrics,
    PolicyMetrics,
    WeightsMetrics,
    WorkerMetrics,
    GatewayMetrics,
    CollectMetrics,
    FeedbackMetrics,
    TrainerMetrics,
    StageMetrics,
    SupervisorMetrics,
)
"""Every class, in the order of docs/metrics.md."""


def create(area: type, registry: CollectorRegistry) -> None:
    """Create the metrics of one of AREAS in a registry, as a process does, for what is written from them."""
    if area is RunMetrics:
        RunMetrics(RunConfig(), registry=registry)
    elif area is SupervisorMetrics:
        SupervisorMetrics(["trainer"], registry=registry)
    else:
        area(registry=registry)
