"""The status of a run: what it is doing, or how it ended.

Reads the run's folder and asks the services that are alive. It changes nothing and works whether the run is
running, has finished or has crashed.
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
from fairlead.local.probes import READY_PATH, GrpcHealth, HttpHealth, get
from fairlead.local.run_files import (
    ProcessRecord,
    StageProgress,
    SupervisorRecord,
    read_progress,
    read_record,
)

STAGES = ("sft", "reward_model", "preference", "ppo")
"""The stages in the order in which a run executes them."""

_REQUEST_SECONDS = 2.0
_SILENT_SECONDS = 600.0
"""Longer than a stage without a supervisor is silent while it works."""
_SHORTEST_WAIT_SECONDS = 1.0
_STOPPED_BY_SIGNAL = (129, 130, 143)
_LOG_BYTES = 65_536
_ERROR_LEVELS = ("error", "critical")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One process of the run."""

    name: str
    """Unique in the run."""
    state: str
    """As its supervisor last recorded it; `gone` if the supervisor died without recording an end."""
    pid: int | None
    """Process id while it is alive."""
    restarts: int
    """Starts after the first."""
    up_seconds: float | None
    """Time since its last start, while it is alive."""
    healthy: bool | None
    """Its own answer to a health check; None if it has none."""
    version: str
    """The weights or the model that it serves; empty if it serves none."""
    waiting: str
    """What it has waited for longest, and for how long; empty if it waits for nothing or cannot be asked."""
    log: str
    """Path of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """The status of a run; its fields are the keys of `fairlead status --json`."""

    run: str
    """The run's folder."""
    state: str
    """new, running, finished, stopped (by a person or a guard), failed, crashed (the supervisor died), or
    unknown. A run without a supervisor on this machine, such as one of a cluster, is running while its stage
    reports progress, and unknown afterwards."""
    reason: str = ""
    """Why it stopped or failed, as the process reported it."""
    stage: str = ""
    """The stage that is running, or the last one."""
    progress: StageProgress | None = None
    """The last progress that the stage reported; None before its first report."""
    said_seconds_ago: float | None = None
    """Age of that report."""
    rollouts_per_second: float | None = None
    """Rate of the last update."""
    finished_stages: dict[str, dict[str, object]] = field(default_factory=dict)
    """Final figures of every stage that has finished."""
    services: tuple[ServiceStatus, ...] = ()
    """Every process that the supervisor started."""
    last_error: str = ""
    """The newest error in the logs, with the process that wrote it."""


async def read_status(folder: RunFolder) -> RunStatus:
    """Return the status of a run; asks live services for health and version, for at most 2 s each."""
    now = read_progress(folder.progress)
    supervised = read_record(folder.supervisor)
    config = _config(folder)
    results = {stage: result for stage in STAGES if (result := _result(folder, stage)) is not None}
    age = _age(folder.progress)
    state, reason = _state(now, supervised, results, age)
    live = supervised is not None and supervised.alive
    services: Iterable[ServiceStatus] = ()
    if supervised is not None:
        services = await asyncio.gather(
            *(service_status(each, live=live, config=config) for each in supervised.processes)
        )
    return RunStatus(
        run=str(folder.root),
        state=state,
        reason=reason,
        stage=supervised.stage if live and supervised else (now.stage if now else ""),
        progress=now,
        said_seconds_ago=age,
        rollouts_per_second=_rollouts_per_second(now, config),
        finished_stages=results,
        services=tuple(services),
        last_error=_last_error(folder, supervised),
    )


def _state(
    now: StageProgress | None,
    supervised: SupervisorRecord | None,
    results: dict[str, dict[str, object]],
    age_seconds: float | None,
) -> tuple[str, str]:
    if supervised is None:
        return _state_of_progress(now, results, age_seconds)
    outcome = supervised.outcome
    if supervised.alive:
        return "running", f"ending: {outcome.message}" if outcome else ""
    if outcome is None:
        return "crashed", "the supervisor ended without recording why: it was killed, or the machine crashed"
    if outcome.code == 0:
        return "finished", ""
    return ("stopped" if outcome.code in (5, *_STOPPED_BY_SIGNAL) else "failed"), outcome.message


def _state_of_progress(
    now: StageProgress | None, results: dict[str, dict[str, object]], age_seconds: float | None
) -> tuple[str, str]:
    """Return state and reason of a run without a supervisor on this machine, such as one of a cluster."""
    if now is None:
        return "new", ""
    if now.phase == "done" and now.stage in results:
        return "finished", ""
    if age_seconds is not None and age_seconds < _SILENT_SECONDS:
        return "running", ""
    return "unknown", (
        "no supervisor on this machine runs it, and it has reported nothing for "
        f"{_SILENT_SECONDS / 60:.0f} minutes; in a cluster, `fairlead k8s status` shows its pods"
    )


async def service_status(
    process: ProcessRecord, *, live: bool, config: RunConfig | None = None
) -> ServiceStatus:
    """Return the status of a process from its record and, if it is alive, from its own answers.

    Args:
        process: the record.
        live: whether the supervisor is alive; the process is asked only then.
        config: configuration of the run, for TLS; None for plain text.
    """
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
        healthy = await HttpHealth(host, int(port), READY_PATH, metrics_tls)()
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


async def _waiting(address: str, tls: TlsSection | None) -> str:
    """Return the longest wait that `/waiting` reports, if it has lasted a second; else ""."""
    if not address:
        return ""
    host, _, port = address.rpartition(":")
    try:
        found = json.loads(await get(host, int(port), "/waiting", tls=tls) or b"[]")
        wait = next((wait for wait in found if wait["seconds"] >= _SHORTEST_WAIT_SECONDS), None)
        if wait is None:
            return ""
        task = "" if wait["task"] is None else f" for task {wait['task']}"
        return f"{wait['detail'] or wait['what']}{task}, {wait['seconds']:.0f} s"
    except (ValueError, KeyError, TypeError):
        return ""


async def _version(process: ProcessRecord, tls: TlsSection | None) -> str:
    """Return the version that a policy or reward service serves; empty for others, whose model is fixed."""
    from fairlead.clients import AsyncPolicyClient, AsyncRewardClient

    try:
        if process.name.startswith("policy"):
            async with AsyncPolicyClient(process.grpc, timeout_seconds=_REQUEST_SECONDS, tls=tls) as policy:
                return str((await policy.info()).weight_version)
        if process.name.startswith("reward"):
            async with AsyncRewardClient(process.grpc, timeout_seconds=_REQUEST_SECONDS, tls=tls) as reward:
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


def _rollouts_per_second(now: StageProgress | None, config: RunConfig | None) -> float | None:
    seconds = now.figures.get("seconds") if now is not None and now.stage == "ppo" else None
    return config.ppo.batch_size / seconds if config is not None and seconds else None


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _last_error(folder: RunFolder, supervised: SupervisorRecord | None) -> str:
    """Return the newest log line of level error since the supervisor started."""
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
            except ValueError:  # the first line, cut off where reading began
                continue
            if isinstance(entry, dict):
                yield entry
