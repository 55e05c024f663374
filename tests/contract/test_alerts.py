"""The alerts of `components/monitoring`: promtool evaluates them, and they use metrics that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from fairlead.k8s.manifests import checkout
from fairlead.metrics import TrainerMetrics
from trainer.ppo import signals

RULES = checkout() / "components" / "monitoring" / "prometheus-rule.yaml"
STATISTIC = 'fairlead_trainer_statistic{name="mismatch_mean", pod="trainer-0"}'
GUARD = 'fairlead_trainer_guard{signal="mismatch", pod="%s"}'


def spec() -> dict:
    return yaml.safe_load(RULES.read_text())["spec"]


def test_alerts_use_metrics_and_signals_that_exist():
    registry = CollectorRegistry()
    TrainerMetrics(registry)
    known = {metric.name for metric in registry.collect()}
    (alert,) = [rule for group in spec()["groups"] for rule in group["rules"]]
    assert set(re.findall(r"fairlead_trainer_\w+", alert["expr"])) <= known
    assert set(re.findall(r'signal="(\w+)"', alert["expr"])) <= set(signals.SIGNALS)
    page = (checkout().parent / "docs" / "metrics.md").read_text()
    assert f"`{alert['alert']}`" in page


# Level of the guard, mean difference, minutes, pod of the guard: whether the alert fires.
@pytest.mark.parametrize(
    ("level", "mean", "minutes", "pod", "fires"),
    [
        (1, "0.3", 5, "trainer-0", True),
        (2, "NaN", 5, "trainer-0", True),
        (1, "0.3", 1, "trainer-0", False),
        (0, "0.05", 5, "trainer-0", False),
        (1, "0.05", 5, "another", False),
    ],
)
def test_alert_fires_at_the_limit_of_the_run(tmp_path: Path, level, mean, minutes, pod, fires: bool):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on the PATH: install Prometheus")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec()))
    alert = spec()["groups"][0]["rules"][0]
    written = "NaN" if mean == "NaN" else f"{float(mean):.3g}"
    expected = {
        "exp_labels": {"severity": "warning", "name": "mismatch_mean", "pod": "trainer-0"},
        "exp_annotations": {
            "summary": alert["annotations"]["summary"],
            "description": alert["annotations"]["description"].replace(
                '{{ $value | printf "%.3g" }}', written
            ),
        },
    }
    case = {
        "interval": "1m",
        "input_series": [
            {"series": STATISTIC, "values": " ".join([mean] * 8)},
            {"series": GUARD % pod, "values": " ".join([str(level)] * 8)},
        ],
        "alert_rule_test": [
            {
                "eval_time": f"{minutes}m",
                "alertname": alert["alert"],
                "exp_alerts": [expected] if fires else [],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [case]}))
    for arguments in (["check", "rules", "rules.yaml"], ["test", "rules", "test.yaml"]):
        done = subprocess.run(
            ["promtool", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
