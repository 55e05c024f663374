"""Every metric name of the project.

A process makes the areas that it reports (`Server(...)`, `Trainer(...)`), once; what it does not make does
not appear on its page. Names are `fairlead_<area>_<what>_<unit>`, but for the gRPC ones, which keep the
names of the ecosystem. docs/metrics.md is compared with this package by a test.
"""

from __future__ import annotations

from fairlead.metrics.edge import Access, Gateway, Process, Server, Tls
from fairlead.metrics.loop import PHASES, Trainer, Worker
from fairlead.metrics.models import Batcher, Policy, Reward, Weights

__all__ = [
    "AREAS",
    "PHASES",
    "Access",
    "Batcher",
    "Gateway",
    "Policy",
    "Process",
    "Reward",
    "Server",
    "Tls",
    "Trainer",
    "Weights",
    "Worker",
]

AREAS = (Process, Server, Access, Tls, Batcher, Reward, Policy, Weights, Worker, Gateway, Trainer)
"""Every area, for docs/metrics.md."""
