"""Every metric name of the project, a class for each part that reports metrics.

A process creates the classes that it reports (`ServerMetrics(...)`, `TrainerMetrics(...)`) once; metrics of
other classes do not appear on its page. Names are `fairlead_<area>_<what>_<unit>`, except the gRPC ones,
which keep the names of the ecosystem. A test compares docs/metrics.md with this package.
"""

from __future__ import annotations

from fairlead.metrics.edge import (
    AccessMetrics,
    CollectMetrics,
    GatewayMetrics,
    ProcessMetrics,
    ServerMetrics,
    TlsMetrics,
)
from fairlead.metrics.feedback import FeedbackMetrics
from fairlead.metrics.loop import PHASES, TrainerMetrics, WorkerMetrics
from fairlead.metrics.models import BatcherMetrics, PolicyMetrics, RewardMetrics, WeightsMetrics

__all__ = [
    "AREAS",
    "PHASES",
    "AccessMetrics",
    "BatcherMetrics",
    "CollectMetrics",
    "FeedbackMetrics",
    "GatewayMetrics",
    "PolicyMetrics",
    "ProcessMetrics",
    "RewardMetrics",
    "ServerMetrics",
    "TlsMetrics",
    "TrainerMetrics",
    "WeightsMetrics",
    "WorkerMetrics",
]

AREAS = (
    ProcessMetrics,
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
)
"""Every class, in the order of docs/metrics.md."""
