"""What a run does now, or how it ended: gathered from its folder, and from its services where they live.

Changes nothing and needs nobody's help: the run may be at work, have finished or have crashed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fairlead.config import RunConfig, RunFolder, load
from fairlead.config.base import TlsSection
from fairlead.errors import FairleadError
from fairlead.local import progress, record
from fairlead.local.probes import GrpcHealth, Readyz, get
from fairlead.local.progress import Progress
from fairlead.local.record import ProcessRecord, SupervisorRecord

STAGES = ("sft", "reward_model", "ppo")
"""In the order in which a run goes through them."""

_ASK_SECONDS = 2.0
_MOMENT_SECONDS = 1.0
_STOPPED_BY_SIGNAL = (129, 130, 143)
_LOG_BYTES = 65_536
_ERROR_LEVELS = ("error", "critical")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One process of the run."""

    name: str
    """Unique in the run."""
    state: str
    """As its supervisor saw it last; `gone` if that one has died and left no word."""
    pid: int | None
    """Process id while it lives."""
    restarts: int
    """Starts after the first."""
    up_seconds: float | None
    """Since its last start, while it lives."""
    healthy: bool | None
    """What it says itself; None if it cannot be asked."""
    version: str
    """The weights or the model that it serves; empty if it serves none."""
    waiting: str
    """What it has waited for longest, and how long; empty if it cannot be asked or waits for nothing."""
    log: str
    """Path of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """What `fairlead status` says."""

    run: str
    """The run's folder."""
    state: str
    """new, running, finished, stopped (by a person, or a guard), failed, crashed (the supervisor is gone), or
    unknown: what runs without a supervisor."""
    reason: str = ""
    """Why it stopped or failed, in its own words."""
    stage: str = ""
    """The stage at work, or the last one."""
    progress: Progress | None = None
    """What that stage said last; None if it has said nothing yet."""
    said_seconds_ago: float | None = None
    """Age of that word."""
    rollouts_per_second: float | None = None
    """Of the last update."""
    finished_stages: dict[str, dict[str, object]] = field(default_factory=dict)
    """Final figures of every stage that has ended."""
    services: tuple[ServiceStatus, ...] = ()
    """Every process that the supervisor started."""
    last_error: str = ""
    """The newest error in the logs, with the process that wrote it."""


async def look(folder: RunFolder) -> RunStatus:
    """Looks at a run. Services that live are asked for their health and version, two seconds at most."""
    now, supervised = progress.read(folder.progress), record.read(folder.supervisor)
    config = _config(folder)
    results = {stage: result for stage in STAGES if (result := _result(folder, stage)) is not None}
    state, reason = _state(now, supervised, results)
    live = supervised is not None and supervised.alive
    services: Iterable[ServiceStatus] = ()
    if supervised is not None:
        services = await asyncio.gather(
            *(ask(each, live=live, config=config) for each in supervised.processes)
        )
    return RunStatus(
        run=str(folder.root),
        state=state,
        reason=reason,
        stage=supervised.stage if live and supervised else (now.stage if now else ""),
        progress=now,
        said_seconds_ago=_age(folder.progress),
        rollouts_per_second=_rollouts_per_second(now, config),
        finished_stages=results,
        services=tuple(services),
        last_error=_last_error(folder, supervised),
    )


def _state(
    now: Progress | None, supervised: SupervisorRecord | None, results: dict[str, dict[str, object]]
) -> tuple[str, str]:
    if supervised is None:
        if now is None:
            return "new", ""
        return ("finished", "") if now.phase == "done" and now.stage in results else ("unknown", "")
    outcome = supervised.outcome
    if supervised.alive:
        return "running", f"ending: {outcome.message}" if outcome else ""
    if outcome is None:
        return "crashed", "the supervisor is gone without a word: killed, or the machine went down"
    if outcome.code == 0:
        return "finished", ""
    return ("stopped" if outcome.code in (5, *_STOPPED_BY_SIGNAL) else "failed"), outcome.message


async def ask(process: ProcessRecord, *, live: bool, config: RunConfig | None = None) -> ServiceStatus:
    """A process by its record and, where its supervisor lives, by what it says of itself."""
    if not live or process.pid is None:
        state = process.state if live or process.state == "ended" else "gone"
        return _without_answer(process, state=state)
    healthy: bool | None = None
    version = ""
    tls = config.tls if config is not None else None
    metrics_tls = config.metrics_tls if config is not None else None
    if process.grpc:
        healthy = await GrpcHealth(process.grpc, tls)()
        version = await _version(process, tls) if healthy else ""
    elif process.http:
        host, _, port = process.http.rpartition(":")
        healthy = await Readyz(host, int(port), metrics_tls)()
    return ServiceStatus(
        name=process.name,
        state=process.state,
        pid=process.pid,
        restarts=process.restarts,
        up_seconds=max(0.0, time.time() - process.started),
        healthy=healthy,
        version=version,
        waiting=await _waiting(process.metrics, metrics_tls),
        log=process.log,
    )


def _without_answer(process: ProcessRecord, *, state: str) -> ServiceStatus:
    return ServiceStatus(
        name=process.name,
        state=state,
        pid=None,
        restarts=process.restarts,
        up_seconds=None,
        healthy=None,
        version="",
        waiting="",
        log=process.log,
    )


async def _waiting(place: str, tls: TlsSection | None) -> str:
    """What stands first at `/waiting`, of what takes longer than a moment."""
    if not place:
        return ""
    host, _, port = place.rpartition(":")
    try:
        found = json.loads(await get(host, int(port), "/waiting", tls=tls) or b"[]")
        wait = next((wait for wait in found if wait["seconds"] >= _MOMENT_SECONDS), None)
        if wait is None:
            return ""
        task = "" if wait["task"] is None else f" for task {wait['task']}"
        return f"{wait['detail'] or wait['what']}{task}, {wait['seconds']:.0f} s"
    except (ValueError, KeyError, TypeError):
        return ""


async def _version(process: ProcessRecord, tls: TlsSection | None) -> str:
    """What a policy or reward service serves; nothing of others, whose model never changes."""
    from fairlead.clients import AsyncPolicyClient, AsyncRewardClient

    try:
        if process.name.startswith("policy"):
            async with AsyncPolicyClient(process.grpc, timeout_seconds=_ASK_SECONDS, tls=tls) as policy:
                return str((await policy.info()).weight_version)
        if process.name.startswith("reward"):
            async with AsyncRewardClient(process.grpc, timeout_seconds=_ASK_SECONDS, tls=tls) as reward:
                return (await reward.info()).model_version
    except FairleadError:
        return ""
    return ""


def _config(folder: RunFolder) -> RunConfig | None:
    try:
        return load(folder.config)
    except FairleadError:
        return None


def _result(folder: RunFolder, stage: str) -> dict[str, object] | None:
    try:
        found = json.loads(folder.result(stage).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _rollouts_per_second(now: Progress | None, config: RunConfig | None) -> float | None:
    seconds = now.figures.get("seconds") if now is not None and now.stage == "ppo" else None
    return config.ppo.batch_size / seconds if config is not None and seconds else None


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _last_error(folder: RunFolder, supervised: SupervisorRecord | None) -> str:
    """The newest line of level error since the supervisor's start."""
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(supervised.started)) if supervised else ""
    found = [
        (str(entry.get("time", "")), log.stem, str(entry.get("message", "")))
        for log in sorted(folder.logs.glob("*.log"))
        for entry in _json_lines(log)
        if entry.get("level") in _ERROR_LEVELS and str(entry.get("time", "")) >= since
    ]
    if not found:
        return ""
    when, process, message = max(found)
    return f"{process} at {when}: {message}"


def _json_lines(log: Path) -> Iterator[dict[str, object]]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("{"):
            try:
                entry = json.loads(line)
            except ValueError:  # cut off by where the reading began
                continue
            if isinstance(entry, dict):
                yield entry
