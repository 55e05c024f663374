"""Every metric that queries may use: those of fairlead/metrics, and a list of metrics of others.

Knows nothing about rules or dashboards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry

from fairlead import metrics

TARGET_LABELS = frozenset({"namespace", "run", "process", "service", "pod", "instance", "job"})
"""Labels of a target: of targets.json, of the PodMonitor, and of Prometheus itself. A label of a metric that
is among them is renamed: `service` becomes `exported_service`."""
_NAME = re.compile(
    r"(?<![\w:])(?:fairlead|grpc_server|grpc_client|process|redis|DCGM)_\w+(?![\w:(])|(?<![\w:])up(?=[{ )])"
)


@dataclass(frozen=True, slots=True)
class Known:
    """A metric."""

    kind: str
    """`counter`, `gauge` or `histogram`."""
    labels: frozenset[str]
    """Its own labels, as Prometheus stores them."""
    values: Mapping[str, frozenset[str]]
    """By label, the values that have a series from the start; a label without such values is missing."""
    meaning: str
    """Its help text."""


@cache
def catalogue() -> Mapping[str, Known]:
    """Return every metric by the name that a query uses; a histogram has three."""
    found: dict[str, Known] = {}
    for area in metrics.AREAS:
        registry = CollectorRegistry()
        metrics.create(area, registry)
        samples = {metric.name: metric.samples for metric in registry.collect()}
        collectors: list[Any] = list(dict.fromkeys(registry._names_to_collectors.values()))
        for collector in collectors:
            name, labels = collector._name, frozenset(map(_stored, collector._labelnames))
            values = {}
            for label in collector._labelnames:
                if present := frozenset(sample.labels[label] for sample in samples.get(name, ())):
                    values[_stored(label)] = present
            known = Known(collector._type, labels, values, collector._documentation)
            if collector._type == "histogram":
                bucket = Known("histogram", labels | {"le"}, values, known.meaning)
                found |= {f"{name}_sum": known, f"{name}_count": known, f"{name}_bucket": bucket}
            else:
                found[name + ("_total" if collector._type == "counter" else "")] = known
    return found | _OTHERS


def names(query: str) -> list[str]:
    """Return the metrics that a query uses, in its order.

    Raises:
        KeyError: if one of them does not exist.
    """
    used = list(dict.fromkeys(_NAME.findall(re.sub(r'"[^"]*"', '""', query))))
    for name in used:
        if name not in catalogue():
            raise KeyError(f"{name} is no metric of fairlead/metrics, in the query: {query}")
    return used


def _stored(label: str) -> str:
    return f"exported_{label}" if label in TARGET_LABELS else label


def _gauge(meaning: str, *labels: str) -> Known:
    return Known("gauge", frozenset(labels), {}, meaning)


_OTHERS = {
    "up": _gauge("1 if the last scrape of the target succeeded."),
    "process_cpu_seconds_total": Known("counter", frozenset(), {}, "CPU time of the process."),
    "process_resident_memory_bytes": _gauge("Resident memory of the process."),
    "process_start_time_seconds": _gauge("Unix time of the start of the process."),
    "process_open_fds": _gauge("Open file descriptors of the process."),
    "redis_memory_used_bytes": _gauge("Memory that Redis uses, from redis_exporter."),
    "redis_memory_max_bytes": _gauge("Memory that Redis may use, from redis_exporter; 0 for no limit."),
    "redis_connected_clients": _gauge("Connections to Redis, from redis_exporter."),
    "redis_up": _gauge("1 if redis_exporter reaches Redis."),
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": _gauge(
        "Share of the time in which a GPU computes, from NVIDIA's dcgm-exporter.",
        "gpu",
        "Hostname",
        "container",
    ),
    "DCGM_FI_DEV_FB_USED": _gauge(
        "Used memory of a GPU in MiB, from dcgm-exporter.", "gpu", "Hostname", "container"
    ),
}
"""Metrics of Prometheus, of prometheus_client, of redis_exporter and of dcgm-exporter."""
