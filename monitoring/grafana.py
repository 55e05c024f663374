"""Writes a dashboard in Grafana's format (schema version 39, Grafana 11).

No Grafana is available where the tests run: they check the queries, and the shape of the JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.metrics import statistics
from monitoring.boards import Board, Panel
from monitoring.catalogue import catalogue, names

SELECTION = 'namespace=~"$namespace", run=~"$run"'
"""What replaces `RUN` in a query."""
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
_HEIGHTS = {"stat": 4}
_COLOURS = ("green", "yellow", "red")
_TARGETS = 'up{job=~"(.+/)?fairlead"}'


def dashboard(board: Board) -> dict[str, Any]:
    """Return a dashboard as Grafana imports it.

    Raises:
        KeyError: if a query uses a metric or a statistic that does not exist.
    """
    panels: list[dict[str, Any]] = []
    x = y = height = 0
    for number, panel in enumerate(board.panels, 1):
        if x + panel.width > _COLUMNS:
            x, y, height = 0, y + height, 0
        tall = _HEIGHTS.get(panel.kind, 8)
        place = {"x": x, "y": y, "w": panel.width, "h": tall}
        panels.append({"id": number, "gridPos": place, **_panel(panel)})
        x, height = x + panel.width, max(height, tall)
    return {
        "uid": f"fairlead-{board.name}",
        "title": board.title,
        "description": board.meaning,
        "tags": list(board.tags),
        "schemaVersion": 39,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": [_alerts()]},
        "links": [
            {
                "type": "dashboards",
                "title": "Fairlead",
                "tags": list(board.tags),
                "keepTime": True,
                "includeVars": True,
            }
        ],
        "panels": panels,
    }


def queries(panel: Panel) -> list[str]:
    """Return the queries of a panel as Grafana sends them, before it sets the variables."""
    return [query.replace("RUN", SELECTION) for query in panel.queries]


def _panel(panel: Panel) -> dict[str, Any]:
    legends = panel.legend.split("|")
    instant = panel.kind in ("table", "bargauge")
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": _SOURCE,
            "expr": query,
            "legendFormat": legends[min(index, len(legends) - 1)],
            "instant": instant,
            "range": not instant,
            **(
                {"format": {"table": "table", "heatmap": "heatmap"}[panel.kind]}
                if panel.kind in _FORMATS
                else {}
            ),
        }
        for index, query in enumerate(queries(panel))
    ]
    found: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": _description(panel),
        "datasource": _SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
    }
    if panel.kind == "table":
        found["transformations"] = _columns(legends, single=len(targets) == 1)
    found["options"] = _OPTIONS.get(panel.kind, {})
    return found


_FORMATS = ("table", "heatmap")
_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "value_and_name", "graphMode": "none"},
    "bargauge": {"orientation": "horizontal", "displayMode": "basic"},
    "state-timeline": {"mergeValues": True, "showValue": "auto"},
    "heatmap": {"calculate": False, "cellGap": 1, "yAxis": {"unit": "s"}},
}


def _defaults(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": _COLOURS[0], "value": None}]
    steps += [
        {"color": colour, "value": limit} for colour, limit in zip(_COLOURS[1:], panel.limits, strict=False)
    ]
    custom: dict[str, Any] = {}
    if panel.kind == "timeseries":
        custom = {
            "fillOpacity": 40 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "line" if panel.limits else "off"},
            "spanNulls": True,
        }
    mappings = [
        {"type": "value", "options": {str(value): {"text": text, "index": value}}}
        for value, text in enumerate(panel.texts)
    ]
    return {
        "unit": panel.unit,
        "custom": custom,
        "mappings": mappings,
        "thresholds": {"mode": "absolute", "steps": steps},
    }


def _columns(legends: Sequence[str], *, single: bool) -> list[dict[str, Any]]:
    """Join the queries of a table by process, one column each."""
    if single:
        return [{"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}]
    names = {f"Value #{chr(ord('A') + index)}": legend for index, legend in enumerate(legends)}
    hidden = {"Time": True, **{f"Time {index + 1}": True for index in range(len(legends))}}
    return [
        {"id": "joinByField", "options": {"byField": "process", "mode": "outer"}},
        {"id": "organize", "options": {"excludeByName": hidden, "renameByName": names}},
    ]


def _description(panel: Panel) -> str:
    """Return what the panel shows: its note, and the meaning of its statistics or metrics."""
    lines = [panel.note] if panel.note else []
    for query in panel.queries:
        for name in names(query):
            if name not in ("fairlead_trainer_statistic", "fairlead_stage_figure"):
                lines.append(f"{name}: {catalogue()[name].meaning}")
        for pattern in re.findall(r'\bname=~?"([^"]+)"', query):
            lines += [f"{one.name}: {one.meaning} {one.good}".strip() for one in matching(pattern)]
    return "\n\n".join(dict.fromkeys(lines))


def matching(pattern: str) -> list[statistics.Statistic]:
    """Return the statistics that a matcher of the label `name` selects.

    Raises:
        KeyError: if one of its alternatives is no statistic.
    """
    found = []
    for part in pattern.split("|"):
        known = [one for one in statistics.STATISTICS if re.fullmatch(part, one.name)]
        known = known or [one for one in [statistics.find(part)] if one is not None]
        if not known:
            raise KeyError(f"{part} is no statistic of fairlead/metrics/statistics")
        found += known
    return found


def _variables() -> list[Mapping[str, Any]]:
    def labels(name: str, query: str, *, everything: bool) -> Mapping[str, Any]:
        return {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "sort": 1,
            "includeAll": everything,
            "multi": False,
            # A run on one machine has no namespace: the label is empty.
            **({"allValue": ".*", "current": {"text": "All", "value": "$__all"}} if everything else {}),
        }

    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return [
        source,
        labels("namespace", f"label_values({_TARGETS}, namespace)", everything=True),
        labels("run", f'label_values({_TARGETS[:-1]}, namespace=~"$namespace"}}, run)', everything=False),
    ]


def _alerts() -> Mapping[str, Any]:
    """Return the annotation that marks alerts of the run in every chart."""
    return {
        "name": "Alerts",
        "enable": True,
        "iconColor": "red",
        "datasource": _SOURCE,
        "expr": f'ALERTS{{alertstate="firing", {SELECTION}}}',
        "titleFormat": "{{alertname}}",
        "tagKeys": "severity",
        "step": "15s",
    }
