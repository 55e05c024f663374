"""A real Prometheus for tests: Debian's package `prometheus`, on a free port, with its data in a folder."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead.local.addresses import LOOPBACK, Ports
from monitoring.__main__ import RULES

FASTER = 30
"""Divides the durations of the rules, so that alerts that take minutes fire in a test."""
SPEED = frozenset({"FairleadApiSlow", "FairleadTargetDown", "FairleadTrainerStarves"})
"""Alerts that fire on a busy machine, as the rules are faster and the machine is not: a process that starts
does not answer for more than 10 s, scrapes take longer than their interval, scores more than 0.5 s, and the
trainer of tiny models waits."""
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Prometheus:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._url = f"http://{LOOPBACK}:{port}"

    def get(self, path: str, **parameters: object) -> Any:
        """Return the data of an answer of the API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{query}", timeout=30) as answer:
            found = json.load(answer)
        assert found["status"] == "success"
        return found["data"]

    def query(self, promql: str, *, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each result of a query, now or at a Unix time."""
        found = self.get("query", query=promql, **({} if at is None else {"time": at}))
        return [(each["metric"], float(each["value"][1])) for each in found["result"]]

    def fired(self, *, since: float, until: float | None = None, **labels: str) -> dict[str, set[str]]:
        """Return the alerts that have fired since a Unix time, each with its processes or other subjects.

        Args:
            since: the time.
            until: a later Unix time; None for now.
            **labels: labels of the alerts that are looked for.
        """
        selector = ", ".join(f'{name}="{value}"' for name, value in labels.items())
        found = self.get(
            "query_range",
            query=f'ALERTS{{alertstate="firing", {selector}}}',
            start=since,
            end=time.time() if until is None else until,
            step="500ms",
        )
        fired: dict[str, set[str]] = {}
        for each in found["result"]:
            one = each["metric"]
            subject = next((one[name] for name in ("process", "reason", "signal", "key") if name in one), "")
            fired.setdefault(one["alertname"], set()).add(subject)
        return fired

    def is_well(self, run: str) -> bool:
        """Return whether all processes of a run are ready, and no alert fires but those of SPEED."""
        bad = f'up{{run="{run}"}} == 0 or fairlead_process_ready{{run="{run}"}} == 0'
        alerts = f'ALERTS{{alertstate="firing", run="{run}", alertname!~"{"|".join(sorted(SPEED))}"}}'
        return not self.query(bad) and not self.query(alerts)

    def names(self) -> set[str]:
        """Return the name of every metric that was ever scraped."""
        return set(self.get("label/__name__/values"))

    def is_ready(self) -> bool:
        """Return whether it answers."""
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self._url}/-/ready", timeout=5).status == 200
        return False


@contextlib.contextmanager
def prometheus(
    folder: Path, scrape: str, *, runs: Sequence[str], interval: str, ca: str = ""
) -> Iterator[Prometheus]:
    """Run Prometheus with the scrape configuration of the docs and faster rules; skip without it.

    Args:
        folder: gets the configuration and the data.
        scrape: `scrape_configs` as YAML.
        runs: names of the runs, which replace `NAME` in the files of targets.
        interval: replaces the interval of every job.
        ca: file of the authority that signs the certificates of targets with HTTPS.
    """
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not on the PATH: install Debian's package `prometheus`")
    config = yaml.safe_load(scrape)
    for job in config["scrape_configs"]:
        job["scrape_interval"] = job["scrape_timeout"] = interval
        if ca:
            job["tls_config"] = {"ca_file": ca}
        for found in job["file_sd_configs"]:
            found["refresh_interval"] = "1s"
            found["files"] = [file.replace("NAME", run) for file in found["files"] for run in runs]
    config["global"] = {"evaluation_interval": "500ms"}
    config["rule_files"] = ["rules.yaml"]
    (folder / "rules.yaml").write_text(yaml.safe_dump(faster(yaml.safe_load(RULES.read_text()))))
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    port = Ports().free("prometheus")
    command = [program, f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command += [f"--web.listen-address={LOOPBACK}:{port}", "--log.level=error"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    server = Prometheus(port)
    try:
        deadline = time.monotonic() + 60
        while not server.is_ready():
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.wait()


def faster(rules: dict[str, Any]) -> dict[str, Any]:
    """Return rules whose ranges, offsets and times before an alert fires are divided by FASTER."""

    def shorter(found: re.Match[str]) -> str:
        milliseconds = int(found[1]) * _SECONDS[found[2]] * 1_000 // FASTER
        return f"{milliseconds}ms"

    for group in rules["groups"]:
        group["interval"] = "500ms"
        for rule in group["rules"]:
            rule["expr"] = re.sub(r"\b(\d+)([smhd])(?=[\])])", shorter, rule["expr"])
            if "for" in rule:
                rule["for"] = re.sub(r"(\d+)([smhd])", shorter, rule["for"])
    return rules
