"""The result of a run under faults, from its files and its queue; no counter is trusted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from fairlead.config import RunConfig, RunFolder
from fairlead.local import valkey
from fairlead.local.run_files import read_pids
from tests.chaos.caller import KINDS, WRONG, Caller
from tests.chaos.injector import InjectedFault
from tests.integration.ppo_run import account, left_over


@dataclass
class Findings:
    """The result of one run."""

    seed: int
    """Seed of its schedule."""
    faults: int
    """Number of injected faults."""
    tasks: int = 0
    """Number of tasks that the run had to settle."""
    lost: int = 0
    """Tasks that never counted."""
    duplicated: int = 0
    """Tasks that counted more than once."""
    dead: int = 0
    """Tasks that counted as dead letters."""
    max_staleness_seen: int = 0
    """Most updates between the weights that generated a token and those that trained on it."""
    seconds: float = 0.0
    """Duration of the run."""
    recovery_seconds: dict[str, list[float]] = field(default_factory=dict)
    """Process → times from each kill to the first rollout trained on that was begun after it."""
    scored: dict[str, int] = field(default_factory=dict)
    """Replies of the gateway by kind: `right`, `refused`, `silent`, `wrong`; see Caller."""
    problems: list[str] = field(default_factory=list)
    """Descriptions of broken guarantees; empty for a correct run."""


def check_run(
    config: RunConfig, injected: Sequence[InjectedFault] = (), *, seed: int, caller: Caller | None = None
) -> Findings:
    """Check a run that has ended, by `fairlead audit` and by an independent count."""
    folder = config.folder
    allowed = config.ppo.max_staleness
    without_signal = json.loads(folder.result("ppo").read_text()).get("tasks_no_signal", 0)
    tasks = config.ppo.updates * config.ppo.tasks_per_update + without_signal
    found = Findings(seed, len(injected), tasks=tasks)
    lines = _trained(folder)
    found.recovery_seconds = _recoveries(injected, lines, caller)
    if caller is not None:
        found.scored = caller.count()
        found.problems += [
            f"wrong reply of the gateway: {r.detail}" for r in caller.replies if r.kind == WRONG
        ]
    found.problems += [f"still running: {line}" for line in left_over(folder)]
    found.problems += [f"still in the table of processes: {name}" for name in read_pids(folder.processes)]
    with valkey.running(folder.redis) as server:
        report = _audit(folder, server.url, found)
        found.problems += _queue_remains(server.url)
    found.lost = len(report["lost"])
    found.duplicated = len(report["duplicated"])
    found.dead = report["dead"]
    found.max_staleness_seen = report["max_staleness_seen"]
    times = account(folder)
    settled = report["trained"] + found.dead + report["no_signal"]
    if (
        times != dict.fromkeys(range(found.tasks), 1)
        or settled != found.tasks
        or (config.ppo.dynamic_sampling and not without_signal)
    ):
        found.problems.append(
            f"{len(times)} of {found.tasks} tasks counted, {sum(times.values())} times in total"
        )
    if max(found.max_staleness_seen, *map(_staleness, lines)) > allowed:
        found.problems.append(f"staleness {found.max_staleness_seen}, allowed: {allowed}")
    return found


def _audit(folder: RunFolder, redis_url: str, found: Findings) -> dict[str, Any]:
    """Run the command `fairlead audit` and return its report."""
    command = [sys.executable, "-m", "fairlead.cli", "audit", str(folder.root), "--json"]
    done = subprocess.run(
        [*command, "--redis-url", redis_url], check=False, capture_output=True, text=True, timeout=120
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"fairlead audit: {done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout)
    if done.returncode:
        found.problems.append(f"fairlead audit: {report['findings']}")
    if not report["ended"] or report["queue"] is None:
        found.problems.append(f"fairlead audit: the run has not ended, or its queue was not read: {report}")
    return report


def _queue_remains(redis_url: str) -> list[str]:
    """Report outcomes or open sendings that are still in the queue."""
    with redis.Redis.from_url(redis_url) as client:
        outcomes = client.xlen("fairlead:{tiny}:rollouts")
        if outcomes or client.exists("fairlead:{tiny}:outstanding"):
            return [f"still in the queue: {outcomes} outcomes, or open sendings"]
    return []


def _trained(folder: RunFolder) -> list[dict[str, Any]]:
    lines = []
    for text in folder.ledger.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # torn by a kill
        if line["event"] == "trained":
            lines.append(line)
    return lines


def _staleness(line: dict[str, Any]) -> int:
    return int(line["update"]) - min(int(version.split("-")[1]) for version in line["versions"])


def _recoveries(
    injected: Sequence[InjectedFault], lines: Sequence[dict[str, Any]], caller: Caller | None
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for inject in injected:
        newest = max((line["incarnation"] for line in lines if line["time"] <= inject.time), default=0)
        for name in inject.killed:
            kind = name.rpartition("-")[0] or name
            if kind == "gateway":
                seconds = caller.recovery_seconds(inject.time) if caller else None
                later = [] if seconds is None else [inject.time + seconds]
            else:
                later = [line["time"] for line in lines if _proves(line, inject, kind, newest)]
            if later:
                found.setdefault(kind, []).append(min(later) - inject.time)
    return found


def _proves(line: dict[str, Any], inject: InjectedFault, kind: str, newest: int) -> bool:
    """Return whether a rollout that was trained on needed the successor of a process that a fault killed.

    `newest` is the newest incarnation before the fault.
    """
    if line["time"] <= inject.time:
        return False
    if kind == "weights":  # generated with weights that were published after it
        return any(int(version.split("-")[1]) > inject.update for version in line["versions"])
    # A batch that was complete before the fault proves nothing.
    return line["incarnation"] > newest or (
        kind not in ("trainer", "trainer-rank") and line["update"] > inject.update
    )


def summary(runs: Sequence[Findings]) -> dict[str, object]:
    """Return the content of `summary.json`: totals, and each run."""
    recoveries: dict[str, list[float]] = {}
    for run in runs:
        for name, seconds in run.recovery_seconds.items():
            recoveries.setdefault(name, []).extend(seconds)
    return {
        "runs": len(runs),
        "faults": sum(run.faults for run in runs),
        "tasks": sum(run.tasks for run in runs),
        "lost": sum(run.lost for run in runs),
        "duplicated": sum(run.duplicated for run in runs),
        "dead_letters": sum(run.dead for run in runs),
        "max_staleness_seen": max((run.max_staleness_seen for run in runs), default=0),
        "recovery_seconds": {
            name: {"count": len(values), "median": sorted(values)[len(values) // 2], "max": max(values)}
            for name, values in sorted(recoveries.items())
        },
        "scored": {kind: sum(run.scored.get(kind, 0) for run in runs) for kind in KINDS},
        "problems": [f"seed {run.seed}: {problem}" for run in runs for problem in run.problems],
        "each": [vars(run) for run in runs],
    }
