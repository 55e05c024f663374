"""What became of a run under faults, from what lies on the disk and in the queue; no counter is trusted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from fairlead.audit import audit
from fairlead.config import RunConfig, RunFolder, load
from fairlead.local import table, valkey
from fairlead.transports.rollouts.redis_observer import look
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
    problems: list[str] = field(default_factory=list)
    """What must not be, in words; empty for a run that kept its promises."""


def judge(config: RunConfig, strikes: Sequence[Strike], *, seed: int) -> Findings:
    """Looks at a run that has ended."""
    folder, bound = config.folder, config.ppo.max_staleness
    found = Findings(seed, len(strikes), tasks=config.ppo.updates * config.ppo.batch_size)
    times = account(folder)
    found.lost = sum(task not in times for task in range(found.tasks))
    found.duplicated = sum(times.values()) - len(times)
    lines = _trained(folder)
    found.max_staleness_seen = max((_staleness(line) for line in lines), default=0)
    found.recovery_seconds = _recoveries(strikes, lines)
    if found.lost or found.duplicated or set(times) - set(range(found.tasks)):
        found.problems.append(f"{found.lost} tasks lost, {found.duplicated} doubled")
    if found.max_staleness_seen > bound:
        found.problems.append(f"staleness {found.max_staleness_seen}, at most {bound} is allowed")
    result = json.loads(folder.result("ppo").read_text())
    found.dead = result["dead_letters"]
    told = {name: result[name] for name in ("updates", "tasks_lost", "tasks_duplicated", "tasks_dispatched")}
    if told != {
        "updates": config.ppo.updates,
        "tasks_lost": 0,
        "tasks_duplicated": 0,
        "tasks_dispatched": found.tasks,
    }:
        found.problems.append(f"the result says {told}")
    found.problems += _left(folder)
    return found


def _left(folder: RunFolder) -> list[str]:
    """Processes and entries of the queue that should not be there any more."""
    problems = [f"left running: {line}" for line in left_over(folder)]
    problems += [f"in the table: {name}" for name in table.read(folder.processes)]
    with valkey.running(folder.redis) as server, redis.Redis.from_url(server.url) as client:
        problems += _audit(folder, server.url)
        outcomes = client.xlen("fairlead:{tiny}:rollouts")
        if outcomes or client.exists("fairlead:{tiny}:outstanding"):
            problems.append(f"left in the queue: {outcomes} outcomes, or tasks under way")
    return problems


def _audit(folder: RunFolder, redis_url: str) -> list[str]:
    """Rules that `fairlead audit` finds broken."""
    config = load(folder.config)
    section = config.queue.model_copy(update={"redis_url": redis_url})
    report, _ = audit(folder, look=lambda: look(section, run=config.name))
    return [f"audit: {one.kind}: {one.words}" for one in report.findings if one.is_error]


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


def _recoveries(strikes: Sequence[Strike], lines: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for strike in strikes:
        newest = max((line["incarnation"] for line in lines if line["time"] <= strike.time), default=0)
        for name in strike.killed:
            # A batch that was complete when the fault struck proves nothing.
            behind = [
                line["time"]
                for line in lines
                if line["time"] > strike.time
                and (line["incarnation"] > newest or (name != "trainer" and line["update"] > strike.update))
            ]
            if behind:
                kind = name.rpartition("-")[0] or name
                found.setdefault(kind, []).append(min(behind) - strike.time)
    return found


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
        "problems": [f"seed {run.seed}: {problem}" for run in runs for problem in run.problems],
        "each": [vars(run) for run in runs],
    }
