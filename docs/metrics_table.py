"""Write docs/metrics.md from the classes in fairlead/metrics/: `python docs/metrics_table.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.metrics import statistics

PAGE = Path(__file__).with_name("metrics.md")
HEAD = """# Metrics

Every process serves `/metrics` (Prometheus), `/healthz`, `/readyz` and `/waiting` on
`observe.metrics_port`. `/waiting` returns JSON: what the process waits for, since when, and for which task.
Any other path is 404. `python docs/metrics_table.py` writes this page from `fairlead/metrics/`; a test
compares the two.

Known label values have a series from the start of a process, at 0, so that `increase()` and `rate()` see
the first event. A gauge whose value is not known yet, such as the version of a policy replica that loads
its first weights, has no series.

## Where to scrape

**On one machine** the supervisor of a run serves metrics, too, and writes `runs/NAME/targets.json`: the
address of each process that is alive, with the labels `run`, `process` and `service`. Prometheus reads the
file again when it changes, so ports need not be configured. A later round of `fairlead iterate`
is a run of its own, in `runs/NAME/round-1` and so on, and the feedback service that it starts is in
`runs/NAME/feedback_targets.json`.

```yaml
{scrape}
```

With `observe.metrics_tls` the targets have the scheme `https`, and the job needs
`tls_config: {{ca_file: …}}` with the `ca` of `[tls]`.

A run ends within a scrape interval. With `observe.linger_seconds` of two intervals the trainer, and then
the supervisor, serve their metrics for that long after the end, so that the last update, a stop by the
guard and the outcome are recorded.

**On Kubernetes** the component `monitoring` has a PodMonitor for the port `metrics` of every pod. Its label
`run` is `app.kubernetes.io/instance` of the pods, the name of the run. `observe.linger_seconds` is 35
there. With `observe.metrics_tls` the PodMonitor that `fairlead k8s` renders scrapes by HTTPS, with the CA
of `[tls]`.

## Ten questions

The answers are those of a run of six updates of tiny models on two busy cores, in update 5, with a gateway
that a script called with a key of 60 tokens a day. `tests/integration/test_prometheus.py` asks them again.

| question | PromQL | answer |
|---|---|---|
{questions}

## Rules, alerts and dashboards

`monitoring/rules.yaml` is a rule file of Prometheus: recording rules (`fairlead:…`) and alerts.
[runbook.md](runbook.md) says how to load it, what each alert means and what to do, and states the
objective of the scoring API. `k8s/components/monitoring` has the same rules as a PrometheusRule, and
dashboards for Grafana: Run, Services, Scoring API, Feedback. Its `dashboards/*.json` can be imported by
hand, too. Each panel explains its metrics. `python -m monitoring` writes both; a test compares every
query with the metrics, labels and statistics of this page.

A label of a metric that the target has, too, is renamed by Prometheus: `service` of
`fairlead_client_retries_total` becomes `exported_service`, `process` of `fairlead_supervisor_restarts_total`
becomes `exported_process`.
"""
SCRAPE = """\
scrape_configs:
  - job_name: fairlead
    scrape_interval: 15s
    file_sd_configs:
      - files: ["runs/NAME/targets.json"]  # for each run; relative to the folder of this file
        refresh_interval: 5s  # finds a folder that did not exist before"""
"""The scrape configuration of a run on one machine."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query that answers a question of an operator."""

    question: str
    """The question; empty if it is that of the query before."""
    promql: str
    """The query."""
    answer: str
    """What it returned on a real run."""
    needs: str = ""
    """What a run on one machine does not have, without which there is no data."""


QUERIES = (
    Query(
        "Is it learning?",
        'fairlead_trainer_statistic{name=~"reward|kl|entropy|explained_variance"}',
        "reward 1.04, KL −0.0001, entropy 3.52, explained variance −3.16",
    ),
    Query(
        "",
        'deriv(fairlead_trainer_statistic{name="reward"}[10m]) * 60',
        "2.1 a minute, which is noise after five updates",
    ),
    Query(
        "Is the reward model being gamed?",
        "max by (run, signal) (fairlead_trainer_guard)",
        "0 for all 11 signals: no",
    ),
    Query(
        "",
        "sum by (run, signal, level) (increase(fairlead_trainer_guard_crossings_total[1h]))",
        "0 for warn and stop of each",
    ),
    Query(
        "Does the trainer starve, and for whom?",
        'sum by (run) (rate(fairlead_trainer_phase_seconds_total{phase="wait"}[5m])) / '
        "sum by (run) (rate(fairlead_trainer_phase_seconds_total[5m]))",
        "0.70",
    ),
    Query(
        "",
        "sum by (run, stage) (rate(fairlead_worker_stage_seconds_sum[5m])) / on (run) group_left () "
        "sum by (run) (rate(fairlead_worker_stage_seconds_sum[5m]))",
        "generate 73%, score 15%, reference 7%, finish 5%",
    ),
    Query(
        "Are rollouts stale?",
        "histogram_quantile(0.99, sum by (run, le, part) "
        "(rate(fairlead_trainer_staleness_updates_bucket[5m])))",
        "0 in flight, 0 in queue",
    ),
    Query(
        "",
        "histogram_quantile(0.9, sum by (run, le) (rate(fairlead_trainer_rollout_age_seconds_bucket[5m])))",
        "3.5 s",
    ),
    Query(
        "Which version does each replica serve?",
        "max by (run) (fairlead_trainer_update) - on (run) group_right () fairlead_policy_weight_update",
        "policy-0: 0",
    ),
    Query("", "fairlead_reward_model_info", "reward, version ed31791e5921"),
    Query(
        "Is anything dead-lettered, and why?",
        "sum by (run, reason) (increase(fairlead_trainer_dead_letters_total[1h]))",
        "0 for each of 20 reasons: no",
    ),
    Query(
        "Does the API meet its objective?",
        'sum(rate(fairlead_gateway_requests_total{dialect!="other", status=~"5.."}[5m])) / '
        'sum(rate(fairlead_gateway_requests_total{dialect!="other"}[5m]))',
        "0",
    ),
    Query(
        "",
        "histogram_quantile(0.99, sum by (le, dialect) "
        '(rate(fairlead_gateway_request_seconds_bucket{dialect!="other", status="2xx"}[5m]))) >= 0',
        "fairlead: 0.19 s",
    ),
    Query(
        "Which key uses up its quota?",
        'max by (key) (fairlead_access_quota_tokens{kind="used"}) / '
        'max by (key) (fairlead_access_quota_tokens{kind="limit"})',
        "app: 1.05, so it is used up",
    ),
    Query(
        "",
        'sum by (key, reason) (increase(fairlead_access_refusals_total{key!=""}[1h])) > 0',
        "app, quota: 11",
    ),
    Query(
        "Is Redis near its limit?",
        "fairlead_trainer_queue_memory_bytes / (fairlead_trainer_queue_memory_limit_bytes > 0)",
        "no data: the Redis of a run on one machine has no limit",
        needs="a Redis with maxmemory",
    ),
    Query(
        "",
        "sum by (run, operation) (increase(fairlead_queue_errors_total[10m]))",
        "0 for each of 12 operations",
    ),
    Query(
        "What does a rollout cost?",
        "sum by (run, service) (rate(process_cpu_seconds_total[5m])) / on (run) group_left () "
        'sum by (run) (rate(fairlead_trainer_tasks_total{event="trained"}[5m]))',
        "ms of CPU: reward 21, policy 21, reference 19, feedback 9, gateway 5, trainer 4, workers 4",
    ),
)
"""The ten questions."""


def page() -> str:
    """Return the text of the page."""
    rows = [
        f"| {query.question} | `{query.promql.replace('|', chr(92) + '|')}` | {query.answer} |"
        for query in QUERIES
    ]
    lines = [HEAD.format(scrape=SCRAPE, questions="\n".join(rows))]
    for area in metrics.AREAS:
        registry = CollectorRegistry()
        metrics.create(area, registry)
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
