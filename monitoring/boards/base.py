"""A dashboard, its panels and their queries.

`RUN` in a query is replaced by the labels that the variables of the dashboard select. A metric that
fairlead/metrics does not have fails when the dashboards are written. Knows nothing about Grafana's format.
"""

from __future__ import annotations

from dataclasses import dataclass, field

RATE = "$__rate_interval"
"""Grafana's range for `rate`: at least four scrapes."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel."""

    title: str
    """Its heading."""
    queries: tuple[str, ...]
    """PromQL."""
    legend: str = "__auto"
    """Name of a curve, with labels as `{{process}}`; several queries have one each, separated by `|`."""
    unit: str = "short"
    """Grafana's name of the unit."""
    kind: str = "timeseries"
    """Grafana's name of the type of panel."""
    width: int = 8
    """Columns, of 24."""
    note: str = ""
    """What to read in it; the meaning of its metrics and statistics follows by itself."""
    stacked: bool = False
    """Whether the curves are areas on top of each other."""
    limits: tuple[float, ...] = ()
    """Values above which the colour is yellow, and red."""
    texts: tuple[str, ...] = ()
    """Words for the values 0, 1, …."""


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    name: str
    """Name of its file and end of its uid."""
    title: str
    """Its heading."""
    meaning: str
    """What it is for."""
    panels: tuple[Panel, ...]
    """In rows of 24 columns, from left to right."""
    tags: tuple[str, ...] = field(default=("fairlead",))
    """Tags in Grafana; dashboards of the same tag link to each other."""


def statistics(names: str) -> str:
    """Return the query for statistics of the last update; `names` is a regular expression."""
    return f'fairlead_trainer_statistic{{RUN, name=~"{names}"}}'


def quantile(share: str, metric: str, by: str = "", selector: str = "RUN") -> str:
    """Return the query for a quantile of a histogram over the last scrapes."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{{{selector}}}[{RATE}])))"


def mean(metric: str, by: str) -> str:
    """Return the query for the mean of a histogram over the last scrapes."""
    parts = [f"sum by ({by}) (rate({metric}_{part}{{RUN}}[{RATE}]))" for part in ("sum", "count")]
    return f"{parts[0]} / ({parts[1]} > 0)"
