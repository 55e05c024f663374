"""A real Prometheus on real runs, found through targets.json: SFT, six updates of PPO with a gateway and
traces, and a run over TLS that its guard stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config import RunFolder
from fairlead.config.saving import save
from fairlead.local.run_files import read_record
from fairlead.metrics import statistics
from monitoring.boards import BOARDS
from monitoring.grafana import queries
from tests.contract.test_documents import script
from tests.integration.ppo_run import Started, make, started
from tests.prometheus_server import SPEED, Prometheus, prometheus
from tests.unit.fairlead.rpc.tls_world import Authority
from tests.unit.trainer.stage_world import sft_run

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra otel")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

UPDATES = 6
TABLE = script("metrics_table")
SETTINGS = (
    f"ppo.updates={UPDATES}",
    "ppo.batch_size=64",
    "ppo.mini_batch_size=64",
    "sampling.max_new_tokens=24",
    "gateway.replicas=1",
    "feedback.replicas=1",
    "weights.transport=grpc",
    "evaluation.every_updates=2",
    "evaluation.num_prompts=4",
    "observe.linger_seconds=4",
    "keys.file=keys.json",
)
STOPPED = (
    "name=guarded",
    "ppo.updates=4",
    "guard.action=stop",
    "guard.kl_stop_above=-100",
    "observe.linger_seconds=3",
)
"""Settings of a run that its guard stops after the first update; it serves everything over TLS."""
ABSENT = {
    "fairlead_process_gpu_memory_bytes": "no GPU",
    "fairlead_trainer_mfu_ratio": "no GPU",
}
"""Documented metrics that these runs do not have, and why."""


NOTHING = {
    "FLOP/s of the GPUs in use": "no GPU",
    "Memory on GPUs": "no GPU",
    "GPUs in use, from DCGM": "no GPU, and no dcgm-exporter",
    "Memory of Redis ÷ its limit": "the Redis of a run on one machine has no limit",
    "Restarts by the supervisor (1 h)": "nothing was restarted",
    "Accuracy on held-out comparisons": "only of the reward model and of preferences",
    "Prefix cache: hits": "the tiny model looks up no prefixes",
    "Time of requests, p95": "nobody calls the feedback service",
}
"""Panels of the dashboards without data on these runs, and why."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Runs that have ended, and the Prometheus that observed them."""

    server: Prometheus
    ppo: RunFolder
    sft: RunFolder
    at: float
    """A Unix time at which all processes of PPO were alive."""
    ready: float
    """The first Unix time at which all processes of PPO were ready."""


def flags(*settings: str) -> list[str]:
    """Return the flags of settings."""
    return [part for setting in settings for part in ("--set", setting)]


def key(folder: Path, name: str, *arguments: str) -> str:
    """Create an API key in the file of the run and return it."""
    command = [
        sys.executable,
        "-m",
        "fairlead.cli",
        "keys",
        "create",
        name,
        "--file",
        "keys.json",
        *arguments,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split()[-1]


def post(address: str, api_key: str) -> int:
    """Ask the gateway for a score and return the status."""
    body = json.dumps({"items": [{"prompt": "w1 w2", "response": "w3 w4 w5"}]}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {api_key}"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{address}/v1/rewards", body, headers), timeout=30
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    from fairlead.tracing.sink import receiving

    folder = tmp_path_factory.mktemp("prometheus")
    file = make(folder, updates=UPDATES)
    scopes = [part for scope in ("score", "generate", "weights", "admin") for part in ("--scope", scope)]
    own, app = key(folder, "run", *scopes), key(folder, "app", "--tokens-per-day", "60")
    sft = sft_run(folder / "sft", epochs=2).model_copy(update={"name": "tiny-sft", "runs": folder / "runs"})
    sft = sft.model_copy(update={"observe": sft.observe.model_copy(update={"linger_seconds": 2.0})})
    save(sft, folder / "sft.toml")
    runs = ("tiny", "tiny-sft", "guarded")
    authority = Authority(folder)
    certificate, private = authority.issue("run")
    tls = (f"tls.certificate={certificate}", f"tls.key={private}", f"tls.ca={authority.ca}")
    observing = prometheus(folder, TABLE.SCRAPE, runs=runs, interval="250ms", ca=str(authority.ca))
    with observing as server, contextlib.ExitStack() as stack:
        traces = stack.enter_context(receiving(folder / "traces.jsonl", host="127.0.0.1", port=0))
        command = [sys.executable, "-m", "fairlead.cli", "sft", "sft.toml"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        environment = pytest.MonkeyPatch()
        stack.callback(environment.undo)
        environment.setenv("FAIRLEAD_API_KEY", own)
        with started(file, *flags(*SETTINGS, f"observe.otlp_endpoint={traces}")) as run:
            run.until(lambda: run.step() >= 1, seconds=300)
            # A start that takes longer than the faster rules allow is no fault: its alert must have ended.
            not_ready = 'ALERTS{alertname="FairleadNotReady", alertstate="firing", run="tiny"}'
            starting = f'up == 0 or fairlead_process_ready{{run="tiny"}} == 0 or {not_ready}'
            run.until(lambda: not server.query(starting), seconds=300)
            ready = time.time()
            run.until(lambda: run.step() >= 3, seconds=300)
            gateway = load_gateway_address(run.folder)
            statuses = Counter(post(gateway, app) for _ in range(20))
            assert set(statuses) == {200, 429}
            run.until(lambda: run.step() >= UPDATES - 2, seconds=300)
            at = last_well(run, server, lambda: post(gateway, own))
            code, output = run.finish(seconds=300)
            assert code == 0, output + run.log_tails()
        with started(file, *flags(*STOPPED, *tls, "observe.metrics_tls=true")) as run:
            code, output = run.finish(seconds=300)
            assert code == 5, output
        yield Observed(server, run.folder, sft.folder, at, ready)
    assert os.environ.get("FAIRLEAD_API_KEY") != own


def last_well(run: Started, server: Prometheus, call: Callable[[], int]) -> float:
    """Return the last Unix time before the end of the updates at which all processes were up and ready.

    `call` is made again and again, so that there are requests of the last seconds at any time.
    """
    record = read_record(run.folder.supervisor)
    assert record is not None
    count = sum(bool(process.metrics) for process in record.processes) + 1  # the supervisor
    at = 0.0
    while not at or run.step() < UPDATES:
        assert run.process.poll() is None, "the run has ended"
        call()
        now = time.time() - 1.0  # scrapes that began before have ended
        up = server.query('count(up{run="tiny"} == 1)', at=now)
        if up == [({}, count)] and not server.query('fairlead_process_ready{run="tiny"} == 0', at=now):
            at = now
    return at


def load_gateway_address(folder: RunFolder) -> str:
    """Return the address that the gateway logged."""
    for line in folder.log("gateway-0").read_text().splitlines():
        if line.startswith("{") and "address" in (entry := json.loads(line)):
            return str(entry["address"])
    raise AssertionError("the gateway has logged no address")


def test_every_target_was_up_and_is_gone_after_the_end(observed: Observed):
    record = read_record(observed.ppo.supervisor)
    assert record is not None
    processes = {process.name for process in record.processes if process.metrics} | {"supervisor"}
    up = {
        labels["process"]: value for labels, value in observed.server.query('up{run="tiny"}', at=observed.at)
    }
    assert up == dict.fromkeys(processes, 1.0)
    assert len(processes) >= 8
    ready = observed.server.query('fairlead_process_ready{run="tiny"} == 0', at=observed.at)
    assert ready == []
    assert json.loads(observed.ppo.targets.read_text()) == []
    assert json.loads(observed.sft.targets.read_text()) == []
    samples = observed.server.query("max(scrape_samples_scraped)", at=observed.at)
    assert samples[0][1] < 5_000


def test_every_documented_metric_has_a_series(observed: Observed):
    documented = set()
    for area in metrics.AREAS:
        registry = CollectorRegistry()
        metrics.create(area, registry)
        for metric in registry.collect():
            suffix = {"counter": "_total", "histogram": "_count"}.get(metric.type, "")
            documented.add(f"{metric.name}{suffix}")
    names = observed.server.names()
    assert documented - names == set(ABSENT)
    assert not [name for name in names if name.endswith("_created")]
    ours = {name for name in names if name.startswith(("fairlead_", "grpc_"))}
    assert {name.removesuffix("_sum").removesuffix("_bucket") for name in ours} <= documented | {
        name.removesuffix("_count") for name in documented
    }


def test_phase_seconds_are_those_of_the_log(observed: Observed):
    logged: Counter[str] = Counter()
    for line in map(json.loads, observed.ppo.phases.read_text().splitlines()):
        logged[line["phase"]] += line["end"] - line["start"]
    query = 'max by (phase) (max_over_time(fairlead_trainer_phase_seconds_total{run="tiny"}[30m]))'
    scraped = {labels["phase"]: value for labels, value in observed.server.query(query)}
    assert scraped.keys() >= logged.keys() - {"done"}
    for phase in logged.keys() - {"done"}:
        assert scraped[phase] == pytest.approx(logged[phase], rel=0.02, abs=0.02), phase


def test_the_end_of_both_runs_was_seen(observed: Observed):
    def last(metric: str) -> float:
        [(_, value)] = observed.server.query(f"max(max_over_time({metric}[30m]))")
        return value

    assert last('fairlead_trainer_update{run="tiny"}') == UPDATES
    assert last('fairlead_trainer_target_updates{run="tiny"}') == UPDATES
    assert last('fairlead_trainer_phase{run="tiny", phase="done"}') == 1
    assert last('fairlead_run_outcome{run="tiny", code="0"}') == 1
    assert last('fairlead_run_outcome{run=~"tiny.*", code!="0"}') == 0
    assert last('fairlead_stage_step{stage="sft"}') == last('fairlead_stage_total_steps{stage="sft"}') > 0
    assert last('fairlead_run_outcome{run="tiny-sft", code="0"}') == 1
    assert last("fairlead_supervisor_restarts_total") == 0


def test_stop_by_the_guard_was_seen(observed: Observed):
    def found(promql: str) -> float:
        [(_, value)] = observed.server.query(promql)
        return value

    crossings = 'fairlead_trainer_guard_crossings_total{run="guarded", signal="kl", level="stop"}'
    assert found(f"increase({crossings}[30m])") > 0
    assert found('max_over_time(fairlead_trainer_guard{run="guarded", signal="kl"}[30m])') == 2
    assert found('max_over_time(fairlead_run_outcome{run="guarded", code="5"}[30m])') == 1
    assert found('max(max_over_time(fairlead_trainer_guard{run="tiny"}[30m]))') < 2


def test_queries_of_the_page_return_data(observed: Observed):
    for query in TABLE.QUERIES:
        found = observed.server.query(query.promql, at=observed.at)
        assert bool(found) != bool(query.needs), query.promql
        sys.stdout.write(f"{query.promql}\n    {shown(found)}\n")


def test_queries_of_the_dashboards_return_data(observed: Observed):
    [(_, last)] = observed.server.query(
        'max(max_over_time(timestamp(fairlead_stage_step{run="tiny-sft"})[30m:1s]))'
    )
    without = {}
    for panel in [panel for board in BOARDS for panel in board.panels]:
        for text in queries(panel):
            run = "tiny-sft" if "fairlead_stage" in text else "tiny"
            query = text.replace("$__rate_interval", "10s").replace("$namespace", ".*").replace("$run", run)
            if not observed.server.query(query, at=last if run == "tiny-sft" else observed.at):
                without[panel.title] = query
    assert without.keys() == NOTHING.keys(), without


def test_only_what_was_wrong_fired(observed: Observed):
    """The script of the test has used up a quota, and the guard has stopped a run."""
    fired = observed.server.fired(since=observed.ready, until=observed.at, run="tiny")
    assert fired["FairleadKeyOutOfQuota"] == {"app"}
    assert fired.keys() - SPEED == {"FairleadKeyOutOfQuota"}, warnings(observed.ppo)
    # Processes that end are not ready; on a busy machine for longer than the faster rules allow.
    ended = observed.server.fired(since=observed.at, run="tiny").keys()
    assert ended <= SPEED | {"FairleadKeyOutOfQuota", "FairleadNotReady"}
    guarded = observed.server.fired(since=observed.ready, run="guarded")
    assert guarded["FairleadRewardHackingStop"] == {"kl"}
    assert guarded.keys() - SPEED - {"FairleadNotReady"} == {"FairleadRewardHackingStop"}, "it starts, too"
    assert observed.server.fired(since=observed.ready - 600, run="tiny-sft").keys() <= SPEED
    alerts = observed.server.get("rules", type="alert")["groups"]
    assert [rule["lastError"] for group in alerts for rule in group["rules"] if rule.get("lastError")] == []


def warnings(folder: RunFolder) -> str:
    """Return the warnings of every process of a run."""
    lines = (line for log in sorted(folder.logs.glob("*.log")) for line in log.read_text().splitlines())
    return "\n".join(line for line in lines if '"level": "warning"' in line)


def shown(found: Sequence[tuple[dict[str, str], float]]) -> str:
    """Return the results of a query in one line, without the labels that all of them have."""
    hidden = ("__name__", "instance", "job", "run")
    parts = []
    for labels, value in found:
        names = " ".join(text for name, text in labels.items() if name not in hidden)
        parts.append(f"{names} {value:.3g}".strip())
    return ", ".join(parts)


def test_every_statistic_is_in_the_table(observed: Observed):
    found = observed.server.get(
        "series", **{"match[]": '{__name__=~"fairlead_(trainer_statistic|stage_figure)"}'}
    )
    names = {labels["name"] for labels in found}
    assert len(names) > 30
    assert [name for name in sorted(names) if statistics.find(name) is None] == []
