"""Write docs/metrics.md from the classes in fairlead/metrics/: `python docs/metrics_table.py`."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.metrics import statistics

PAGE = Path(__file__).with_name("metrics.md")
HEAD = """# Metrics

Every process serves `/metrics` (Prometheus), `/healthz`, `/readyz` and `/waiting` on `observe.metrics_port`.
`/waiting` returns JSON: what the process waits for, since when, and for which task. `python
docs/metrics_table.py` writes this page from `fairlead/metrics/`; a test compares the two.

Two useful PromQL expressions:

- idle fraction of the trainer: `avg_over_time(fairlead_trainer_phase{phase="wait"}[10m])`
- number of updates that each replica is missing: `scalar(fairlead_trainer_update) -
fairlead_policy_weight_update`

## Alerts

`k8s/components/monitoring/prometheus-rule.yaml` has one, as a PrometheusRule. For a Prometheus without the
operator, what is below `spec` is a rule file (`yq .spec`).

`LogprobMismatch` fires 2 minutes after the mean difference between the log-probs of the policy service and of
the trainer crossed `guard.mismatch_warn_above`: the service has other weights than the trainer, or computes
something else. Compare `fairlead_policy_weight_update` with `fairlead_trainer_update`; with vLLM as the
engine, see [its page](vllm.md#log-probs). With `guard.mismatch_stop_above` the run stops by itself.
"""


def new_area(area: type, registry: CollectorRegistry) -> None:
    """Create the metrics of a class in a registry, as a process does."""
    if area is metrics.RunMetrics:
        area(RunConfig(), registry=registry)
    elif area is metrics.SupervisorMetrics:
        area(["trainer"], registry=registry)
    else:
        area(registry=registry)


def page() -> str:
    """Return the text of the page."""
    lines = [HEAD]
    for area in metrics.AREAS:
        registry = CollectorRegistry()
        new_area(area, registry)
        lines += [
            f"\n## {(area.__doc__ or '').removesuffix('.')}\n",
            "| metric | type | labels | description |",
            "|---|---|---|---|",
        ]
        for collector in dict.fromkeys(registry._names_to_collectors.values()):
            name = collector._name + ("_total" if collector._type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in collector._labelnames) or "–"
            lines.append(f"| `{name}` | {collector._type} | {labels} | {collector._documentation} |")
    return "\n".join([*lines, *_statistics()]) + "\n"


def _statistics() -> list[str]:
    lines = [
        "\n## Statistics of a stage\n",
        "The values of the label `name`, which are also the keys of `metrics_<stage>.jsonl` and the curves",
        "of TensorBoard. A signal is one of the [guard](configuration-reference.md#guard); its limits are",
        "`guard.<signal>_warn_above`, `guard.<signal>_stop_above` and so on. `heldout_<name>` is a statistic",
        "on held-out examples.\n",
        "| statistic | stages | unit | meaning | in a healthy run | signal |",
        "|---|---|---|---|---|---|",
    ]
    for one in statistics.STATISTICS:
        stages = ", ".join(one.stages)
        signal = f"`{one.signal}`" if one.signal else "–"
        lines.append(
            f"| `{one.name}` | {stages} | {one.unit or '–'} | {one.meaning} | {one.good or '–'} | {signal} |"
        )
    return lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
