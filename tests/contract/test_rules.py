"""Rules, dashboards and queries of the docs: promtool tests the alerts, and all use metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from fairlead.metrics import statistics
from monitoring.__main__ import COMPONENT, RULES, files
from monitoring.boards import BOARDS
from monitoring.catalogue import TARGET_LABELS, catalogue, names
from monitoring.grafana import queries
from tests.contract.test_documents import script

ROOT = RULES.parents[1]
TESTS = [RULES.with_name("rules_test.yaml"), RULES.with_name("rules_long_test.yaml")]
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ENTRIES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ENTRIES if "alert" in rule}
RECORDS = {rule["record"] for rule in ENTRIES if "record" in rule}
CASES = [case for file in TESTS for case in yaml.safe_load(file.read_text())["tests"]]
SEVERITIES = ("info", "warning", "critical")
OPEN = ("fairlead_feedback_requests_total", "fairlead_stage_figure", "fairlead_stage_phase")
"""Metrics some of whose values are not known from the start."""
FIRING = 'ALERTS{alertstate="firing"}'


def test_promtool_accepts_rules_and_their_tests():
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on the PATH: install Debian's package `prometheus`")
    for command in (["check", "rules", RULES], ["test", "rules", *TESTS]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def fired(check: dict[str, Any]) -> set[str]:
    """Return the alerts that a check expects to fire."""
    return set(re.findall(r'alertname="(\w+)"', " ".join(each["labels"] for each in check["exp_samples"])))


def test_each_alert_has_text_runbook_and_tests():
    page = (ROOT / "docs" / "runbook.md").read_text()
    assert re.findall(r"^### (Fairlead\w+)$", page, re.MULTILINE) == list(ALERTS)
    shown, silent = set(), set()
    for case in CASES:
        checks = [check for check in case["promql_expr_test"] if check["expr"] == FIRING]
        found = set().union(*map(fired, checks))
        shown |= found
        silent |= found if checks[0]["exp_samples"] == [] else set()
    assert shown == silent == set(ALERTS), "each fires in a test, and not at its first evaluation"
    for name, rule in ALERTS.items():
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in SEVERITIES
        notes = rule["annotations"]
        assert notes.keys() == {"summary", "description", "runbook_url"}
        assert notes["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        used = set(re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"]))
        assert used <= {*re.findall(r"\w+", rule["expr"]), "run", "process"}, name


def test_healthy_run_has_every_metric_of_the_alerts():
    (healthy,) = [case for case in CASES if case["name"] == "a healthy run fires none"]
    assert all(c["exp_samples"] == [] for c in healthy["promql_expr_test"] if c["expr"] == FIRING)
    present = {re.split(r"[{ ]", one["series"])[0] for one in healthy["input_series"]}
    needed = {name for rule in ENTRIES for name in names(rule["expr"])}
    assert needed - present == set()


def test_generated_files_are_up_to_date():
    for path, text in files().items():
        assert path.read_text() == text, f"run python -m monitoring: {path}"
    assert len(list(COMPONENT.glob("dashboards/*.json"))) == len(BOARDS)
    rule = yaml.safe_load((COMPONENT / "prometheus-rule.yaml").read_text())
    assert rule["spec"]["groups"] == GROUPS


def test_dashboards_are_whole():
    for board in BOARDS:
        shown = json.loads((COMPONENT / "dashboards" / f"{board.name}.json").read_text())
        assert shown["uid"] == f"fairlead-{board.name}"
        assert [one["name"] for one in shown["templating"]["list"]] == ["datasource", "namespace", "run"]
        taken: set[tuple[int, int]] = set()
        for panel in shown["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            taken |= cells
            assert all(target["expr"] for target in panel["targets"])
            assert panel["description"], panel["title"]
        assert len({panel["title"] for panel in shown["panels"]}) == len(shown["panels"])


def promql() -> Iterator[tuple[str, str]]:
    """Yield where and text of every query of rules, dashboards and docs."""
    for rule in ENTRIES:
        yield rule.get("alert", rule.get("record")), rule["expr"]
    for board in BOARDS:
        for panel in board.panels:
            for query in queries(panel):
                text = (
                    query.replace("$__rate_interval", "1m")
                    .replace("$namespace", ".*")
                    .replace("$run", "tiny")
                )
                yield f"{board.name}: {panel.title}", text
    for query in script("metrics_table").QUERIES:
        yield "docs/metrics.md", query.promql


def test_queries_use_metrics_that_exist():
    for where, query in promql():
        found = {*names(query), *re.findall(r"fairlead:[\w:]+", query)}
        assert found <= catalogue().keys() | RECORDS, where
        assert found, where


def selectors(node: Any) -> Iterator[Any]:
    """Yield each selector of a parsed query, with its labels."""
    for attribute in ("lhs", "rhs", "expr", "args", "vector_selector", "param"):
        below = getattr(node, attribute, None)
        for each in below if isinstance(below, list) else [below]:
            if each is not None and not isinstance(each, (str, float)):
                yield from selectors(each)
    if hasattr(node, "matchers"):
        yield node


def test_queries_parse_and_use_labels_and_values_that_exist():
    parser = pytest.importorskip("promql_parser", reason="PyPI promql-parser, of the extra `dev`")
    seen = 0
    for where, query in promql():
        for selector in selectors(parser.parse(query)):
            known = catalogue().get(selector.name)
            if known is None:
                assert selector.name in RECORDS, f"{where}: {selector.name}"
                continue
            for matcher in selector.matchers.matchers:
                assert matcher.name in known.labels | TARGET_LABELS, f"{where}: {matcher.name}"
                check_values(where, {} if selector.name in OPEN else known.values, matcher)
                seen += 1
    assert seen > 200


def check_values(where: str, known: Mapping[str, frozenset[str]], matcher: Any) -> None:
    """Check that each alternative of a matcher is a value with a series from the start, or a statistic."""
    for part in matcher.value.split("|"):
        if matcher.name == "name":
            is_known = any(re.fullmatch(part, one.name) for one in statistics.STATISTICS)
            assert is_known or statistics.find(part), f"{where}: {part}"
        elif matcher.name in known and matcher.name != "le":
            assert any(re.fullmatch(part, value) for value in known[matcher.name]), f"{where}: {matcher}"
