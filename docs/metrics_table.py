"""Writes docs/metrics.md from the catalogue in fairlead/metrics/: `python docs/metrics_table.py`."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from fairlead import metrics

PAGE = Path(__file__).with_name("metrics.md")
HEAD = """# Metrics

Every process serves `/metrics` (Prometheus), `/healthz`, `/readyz` and `/waiting` (what it waits for, since
when and for which task, as JSON) on `observe.metrics_port`. The table is made from `fairlead/metrics/` by
`python docs/metrics_table.py`; a test compares the two.

Two lines of PromQL that are worth a panel:

- idle fraction of the trainer: `avg_over_time(fairlead_trainer_phase{phase="wait"}[10m])`
- updates that each replica lags behind: `scalar(fairlead_trainer_update) - fairlead_policy_weight_update`
"""


def page() -> str:
    """The page as it should be."""
    lines = [HEAD]
    for area in metrics.AREAS:
        registry = CollectorRegistry()
        area(registry)
        lines += [
            f"\n## {(area.__doc__ or '').removesuffix('.')}\n",
            "| metric | type | labels | what |",
            "|---|---|---|---|",
        ]
        for collector in dict.fromkeys(registry._names_to_collectors.values()):
            name = collector._name + ("_total" if collector._type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in collector._labelnames) or "–"
            lines.append(f"| `{name}` | {collector._type} | {labels} | {collector._documentation} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
