"""What several classes of metrics share: series that exist from the start, and values read at a scrape."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_Child_co = TypeVar("_Child_co", covariant=True)


class Labelled(Protocol[_Child_co]):
    """A metric with labels."""

    def labels(self, *values: str, **names: str) -> _Child_co:
        """Return the series of these labels, which exists from then on."""
        ...


def make_series(metric: Labelled[object], **values: Collection[str]) -> None:
    """Create the series of every combination of known label values, at 0.

    A counter whose series begins with its first event hides that event from `increase()`.

    Args:
        metric: its labels are the names of the other arguments.
        **values: the known values of each label.
    """
    for combination in itertools.product(*values.values()):
        metric.labels(**dict(zip(values, combination, strict=True)))


class ReadMetric(Collector):
    """A metric whose values are read when it is scraped; without a value it has no series."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        read: Callable[[], Mapping[tuple[str, ...], float]],
        *,
        registry: CollectorRegistry,
    ) -> None:
        """
        Args:
            name: a counter if it ends in `_total`, else a gauge.
            documentation: the help text.
            labels: names of the labels.
            read: returns the value of each series by the values of its labels; called in the thread of the
                scrape.
            registry: gets the metric.
        """
        self._type = "counter" if name.endswith("_total") else "gauge"
        self._name = name.removesuffix("_total")
        self._documentation = documentation
        self._labelnames = tuple(labels)
        self._read = read
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """Yield the name and the type, without a value."""
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        """Yield the metric with its present values."""
        family = self._family()
        for values, value in self._read().items():
            family.add_metric(values, value)
        yield family

    def _family(self) -> CounterMetricFamily | GaugeMetricFamily:
        kind = CounterMetricFamily if self._type == "counter" else GaugeMetricFamily
        return kind(self._name, self._documentation, labels=self._labelnames)


class LateGauge:
    """A gauge without labels that has no series before its first value: 0 would be a false value."""

    def __init__(self, name: str, documentation: str, *, registry: CollectorRegistry) -> None:
        self._value: float | None = None
        ReadMetric(
            name,
            documentation,
            (),
            lambda: {} if self._value is None else {(): self._value},
            registry=registry,
        )

    def set(self, value: float) -> None:
        """Set the value."""
        self._value = value


class PhaseClock:
    """The seconds spent in each phase so far, the present one included."""

    def __init__(self, phases: Sequence[str]) -> None:
        """
        Args:
            phases: the known phases; each has a value from the start.
        """
        self._seconds = dict.fromkeys(phases, 0.0)
        self._phase = ""
        self._since = 0.0
        self._lock = threading.Lock()

    def enter(self, phase: str, now: float) -> None:
        """Begin a phase at a Unix time, which ends the one before; an empty name only ends it."""
        with self._lock:
            if self._phase:
                self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
            self._phase, self._since = phase, now

    def read(self) -> dict[str, float]:
        """Return the seconds by phase."""
        with self._lock:
            found = dict(self._seconds)
            if self._phase:
                found[self._phase] = found.get(self._phase, 0.0) + time.time() - self._since
            return found
