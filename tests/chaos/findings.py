"""What became of a run under faults, from what lies on the disk and in the queue; no counter is trusted."""

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
from tests.chaos.injector import Strike
from tests.integration.ppo_run import account, left_over


@dataclass
class Findings:
    """One run, judged."""

    seed: int
    """Of its schedule."""
    faults: int
    """That struck."""
    tasks: int = 0
    """That the run was to train on."""
    lost: int = 0
    """Tasks that never counted."""
    duplicated: int = 0
    """Outcomes that counted although their task had counted before."""
    dead: int = 0
    """Tasks that counted as dead letters."""
    max_staleness_seen: int = 0
    """Updates between the weights of a token and those that trained on it."""
    seconds: float = 0.0
    """From the start of the run to its end."""
    recovery_seconds: dict[str, list[float]] = field(default_factory=dict)
    """Process → from each kill to the first rollout trained on that was begun after it."""
    scored: dict[str, int] = field(default_factory=dict)
    """What requests to the gateway came to: `right`, `refused`, `silent`, `wrong`; see Caller."""
    problems: list[str] = field(default_factory=list)
    """What must not be, in words; empty for a run that kept its promises."""


def judge(
    config: RunConfig, strikes: Sequence[Strike] = (), *, seed: int, caller: Caller | None = None
) -> Findings:
    """Looks at a run that has ended: by `fairlead audit`, and by a count of our own beside it."""
    folder, bound = config.folder, config.ppo.max_staleness
    found = Findings(seed, len(strikes), tasks=config.ppo.updates * config.ppo.batch_size)
    lines = _trained(folder)
    found.recovery_seconds = _recoveries(strikes, lines, caller)
    if caller is not None:
        found.scored = caller.count()
        found.problems += [f"the gateway answered {r.detail}" for r in caller.replies if r.kind == WRONG]
    found.problems += [f"left running: {line}" for line in left_over(folder)]
    found.problems += [f"in the table: {name}" for name in read_pids(folder.processes)]
    with valkey.running(folder.redis) as server:
        report = _audit(folder, server.url, found)
        found.problems += _left(server.url)
    found.lost, found.duplicated = len(report["lost"]), len(report["duplicated"])
    found.dead, found.max_staleness_seen = report["dead"], report["max_staleness_seen"]
    times = account(folder)
    if times != dict.fromkeys(range(found.tasks), 1) or report["trained"] + found.dead != found.tasks:
        found.problems.append(f"{len(times)} tasks counted {sum(times.values())} times, of {found.tasks}")
    if max(found.max_staleness_seen, *map(_staleness, lines)) > bound:
        found.problems.append(f"staleness {found.max_staleness_seen}, at most {bound} is allowed")
    return found


def _audit(folder: RunFolder, redis_url: str, found: Findings) -> dict[str, Any]:
    """What `fairlead audit` says, as a person would ask it."""
    command = [sys.executable, "-m", "fairlead.cli", "audit", str(folder.root), "--json"]
    told = subprocess.run(
        [*command, "--redis-url", redis_url], check=False, capture_output=True, text=True, timeout=120
    )
    if told.returncode not in (0, 1):
        raise RuntimeError(f"fairlead audit: {told.stderr}")
    report: dict[str, Any] = json.loads(told.stdout)
    if told.returncode:
        found.problems.append(f"fairlead audit: {report['findings']}")
    if not report["ended"] or report["queue"] is None:
        found.problems.append(f"fairlead audit saw no end, or no queue: {report}")
    return report


def _left(redis_url: str) -> list[str]:
    """What should not be in the queue any more."""
    with redis.Redis.from_url(redis_url) as client:
        outcomes = client.xlen("fairlead:{tiny}:rollouts")
        if outcomes or client.exists("fairlead:{tiny}:outstanding"):
            return [f"left in the queue: {outcomes} outcomes, or tasks under way"]
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
    strikes: Sequence[Strike], lines: Sequence[dict[str, Any]], caller: Caller | None
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for strike in strikes:
        newest = max((line["incarnation"] for line in lines if line["time"] <= strike.time), default=0)
        for name in strike.killed:
            kind = name.rpartition("-")[0] or name
            if kind == "gateway":
                seconds = caller.recovery_seconds(strike.time) if caller else None
                behind = [] if seconds is None else [strike.time + seconds]
            else:
                behind = [line["time"] for line in lines if _proves(line, strike, kind, newest)]
            if behind:
                found.setdefault(kind, []).append(min(behind) - strike.time)
    return found


def _proves(line: dict[str, Any], strike: Strike, kind: str, newest: int) -> bool:
    """Whether a rollout was trained on that needed what a strike killed; `newest` incarnation before it."""
    if line["time"] <= strike.time:
        return False
    if kind == "weights":  # made with weights that were published behind it
        return any(int(version.split("-")[1]) > strike.update for version in line["versions"])
    # A batch that was complete when the fault struck proves nothing.
    return line["incarnation"] > newest or (kind != "trainer" and line["update"] > strike.update)


def summary(runs: Sequence[Findings]) -> dict[str, object]:
    """What `summary.json` says: totals, and each run."""
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
