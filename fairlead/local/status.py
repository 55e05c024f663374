"""The status of a run: what it is doing, or how it ended.

Reads the run's folder and asks the services that are alive. It changes nothing and works whether the run is
running, has finished or has crashed.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from fairlead.config import RunConfig, RunFolder, load
from fairlead.config.base import TlsSection
from fairlead.config.guard import GuardSection, Level
from fairlead.errors import FairleadError
from fairlead.local.json_lines import JsonLines, Row
from fairlead.local.live_queue import LiveQueue, live_queue
from fairlead.local.probes import READY_PATH, GrpcHealth, HttpHealth, RedisPing, get
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
_WAITING_PHASES = ("start", "wait")
_STOPPED_BY_SIGNAL = (129, 130, 143)
_LOG_BYTES = 65_536
RECENT = 24
"""Updates whose figures `RunStatus.recent` holds."""
_CURVES = ("reward", "kl", "entropy", "response_length", "loss", "accuracy", "tokens_per_second", "seconds")
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
    """What it has waited for longest; empty if it waits for nothing or cannot be asked."""
    log: str
    """Path of its log."""
    waiting_seconds: float = 0.0
    """How long it has waited for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalStatus:
    """One signal of the guard at the last update."""

    name: str
    """As in `[guard]`."""
    value: float
    """Its value."""
    level: Level
    """Whether it is beyond a limit."""
    limit: float | None
    """The limit that it is beyond."""


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
    phase_seconds: float | None = None
    """Time since the phase of that report began."""
    rollouts_per_second: float | None = None
    """Rate of the last update."""
    finished_stages: dict[str, dict[str, object]] = field(default_factory=dict)
    """Final figures of every stage that has finished."""
    services: tuple[ServiceStatus, ...] = ()
    """Every process that the supervisor started."""
    last_error: str = ""
    """The newest error in the logs, with the process that wrote it."""
    signals: tuple[SignalStatus, ...] = ()
    """Signals of the guard at the last update, the worst first."""
    recent: dict[str, list[float]] = field(default_factory=dict)
    """The most important figures of the last updates or steps, by name, oldest first."""
    best_reward: tuple[int, float] | None = None
    """Update with the highest reward, and that reward."""
    figures_step: int | None = None
    """Update or step of the figures."""
    figures_seconds_ago: float | None = None
    """Age of the figures."""
    queue: LiveQueue | None = None
    """The queue now; None while the trainer or Redis does not answer."""
    share_waiting: float | None = None
    """Share of the time of the last updates in which the trainer waited for rollouts."""


@dataclass(frozen=True, slots=True)
class _LogTail:
    """What the end of a log says."""

    size: int
    """Bytes of the log when it was read."""
    errors: tuple[tuple[str, str, str], ...] = ()
    """Time, process and message of each error."""
    last_message: str = ""
    """Message of the last line."""


class StatusReader:
    """Reads the status of one run again and again, and only what is new of files that grow."""

    def __init__(self, folder: RunFolder, *, ask_seconds: float = 0.0) -> None:
        """
        Args:
            folder: of the run.
            ask_seconds: services are asked for health and version again after this time.
        """
        self._folder = folder
        self._ask_seconds = ask_seconds
        self._figures = {stage: JsonLines(folder.metrics(stage), keep=_figures_kept) for stage in STAGES}
        self._answers: dict[tuple[str, int | None, str], tuple[float, bool | None, str]] = {}
        self._queue: tuple[float, LiveQueue | None] | None = None
        self._config: RunConfig | None = None
        self._config_time: float | None = None
        self._tails: dict[Path, _LogTail] = {}

    async def read(self) -> RunStatus:
        """Return the status; asks live services for health and version, for at most 2 s each."""
        folder = self._folder
        now = read_progress(folder.progress)
        supervised = read_record(folder.supervisor)
        config = self._read_config()
        results = {stage: result for stage in STAGES if (result := _result(folder, stage)) is not None}
        age = _age(folder.progress)
        state, reason = _state(now, supervised, results, age)
        live = supervised is not None and supervised.alive
        services: list[ServiceStatus] = []
        queue = None
        if supervised is not None:
            asked = (self._service(each, live=live, config=config) for each in supervised.processes)
            queue, services = await asyncio.gather(
                self._read_queue(supervised, config), asyncio.gather(*asked)
            )
        stage = supervised.stage if live and supervised else (now.stage if now else "")
        rows = self._figures[stage].read() if stage in self._figures else []
        rewards = [(int(row["step"]), float(row["reward"])) for row in rows if "reward" in row]
        return RunStatus(
            run=str(folder.root),
            state=state,
            reason=reason,
            stage=stage,
            progress=now,
            said_seconds_ago=age,
            phase_seconds=max(0.0, time.time() - now.since) if now is not None and now.since else None,
            rollouts_per_second=_rollouts_per_second(now, config),
            finished_stages=results,
            services=tuple(services),
            last_error=self._last_error(supervised),
            signals=_signals(now, config.guard if config is not None else GuardSection()),
            recent={
                name: [row[name] for row in rows[-RECENT:] if name in row]
                for name in _CURVES
                if any(name in row for row in rows[-RECENT:])
            },
            best_reward=max(rewards, key=lambda one: one[1], default=None),
            figures_step=int(rows[-1]["step"]) if rows else None,
            figures_seconds_ago=max(0.0, time.time() - rows[-1]["time"]) if rows else None,
            share_waiting=_share_waiting(rows[-10:]),
            queue=queue,
        )

    async def _read_queue(self, supervised: SupervisorRecord, config: RunConfig | None) -> LiveQueue | None:
        """Return the queue of a live run of PPO, asked again after `ask_seconds`."""
        trainer = next((each for each in supervised.processes if each.name == "trainer"), None)
        if not supervised.alive or supervised.stage != "ppo" or trainer is None:
            return None
        if trainer.pid is None or not trainer.metrics:
            return None
        if self._queue is None or time.monotonic() - self._queue[0] >= self._ask_seconds:
            tls = config.metrics_tls if config is not None else None
            self._queue = time.monotonic(), await live_queue(trainer.metrics, tls)
        return self._queue[1]

    async def _service(
        self, process: ProcessRecord, *, live: bool, config: RunConfig | None
    ) -> ServiceStatus:
        # What a process answered before it was ready is no answer of now.
        key = (process.name, process.pid, process.state)
        asked = self._answers.get(key)
        if asked is not None and time.monotonic() - asked[0] < self._ask_seconds:
            found = await service_status(process, live=live, config=config, answers=asked[1:])
        else:
            found = await service_status(process, live=live, config=config)
            self._answers[key] = (time.monotonic(), found.healthy, found.version)
        if live and found.state == "starting" and not found.waiting:
            # What a process does before it is ready, only its log says.
            return replace(found, waiting=self._tail(self._folder.log(process.name)).last_message)
        return found

    def _read_config(self) -> RunConfig | None:
        """Return the configuration, which is parsed again only if its file has changed."""
        try:
            changed = self._folder.config.stat().st_mtime
        except OSError:
            return None
        if changed != self._config_time:
            self._config, self._config_time = _config(self._folder), changed
        return self._config

    def _last_error(self, supervised: SupervisorRecord | None) -> str:
        """Return the newest log line of level error since the supervisor started."""
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(supervised.started)) if supervised else ""
        found = [
            error
            for log in sorted(self._folder.logs.glob("*.log"))
            for error in self._tail(log).errors
            if error[0] >= since
        ]
        if not found:
            return ""
        when, process, message = max(found)
        return f"{process} at {when}: {message}"

    def _tail(self, log: Path) -> _LogTail:
        """Return what the end of a log says; it is read again only when the log has grown."""
        try:
            size = log.stat().st_size
        except OSError:
            return _LogTail(0)
        known = self._tails.get(log)
        if known is None or known.size != size:
            entries = list(_json_lines(log))
            errors = [
                (str(entry.get("time", "")), log.stem, str(entry.get("message", "")))
                for entry in entries
                if entry.get("level") in _ERROR_LEVELS
            ]
            message = str(entries[-1].get("message", "")) if entries else ""
            known = self._tails[log] = _LogTail(size, tuple(errors), message)
        return known


async def read_status(folder: RunFolder) -> RunStatus:
    """Return the status of a run once."""
    return await StatusReader(folder).read()


def _figures_kept(row: Row) -> Row | None:
    """Return the step, the time and the curves of a row of metrics."""
    names = ("step", "time", "seconds_wait", *_CURVES)
    kept = {name: row[name] for name in names if isinstance(row.get(name), int | float)}
    return kept if "step" in kept and "time" in kept and len(kept) > 2 else None


def _signals(now: StageProgress | None, section: GuardSection) -> tuple[SignalStatus, ...]:
    if now is None or now.stage != "ppo" or section.action == "off":
        return ()
    found = []
    for figure, value in now.figures.items():
        if figure.startswith("guard_"):
            name = figure.removeprefix("guard_")
            level, limit = section.judge(name, value)
            found.append(SignalStatus(name=name, value=value, level=level, limit=limit))
    return tuple(sorted(found, key=lambda signal: ("stop", "warn", "quiet").index(signal.level)))


def _share_waiting(rows: list[Row]) -> float | None:
    known = [row for row in rows if "seconds_wait" in row and row.get("seconds")]
    seconds = math.fsum(row["seconds"] for row in known)
    return min(1.0, math.fsum(row["seconds_wait"] for row in known) / seconds) if seconds else None


def _state(
    now: StageProgress | None,
    supervised: SupervisorRecord | None,
    results: dict[str, dict[str, object]],
    age_seconds: float | None,
) -> tuple[str, str]:
    if supervised is None:
        return _state_of_progress(now, results, age_seconds)
    outcome = supervised.outcome
    ended = outcome is not None and all(process.state == "ended" for process in supervised.processes)
    # The supervisor of the stage may live on, as between the stages of a quickstart.
    if supervised.alive and not ended:
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
    process: ProcessRecord,
    *,
    live: bool,
    config: RunConfig | None = None,
    answers: tuple[bool | None, str] | None = None,
) -> ServiceStatus:
    """Return the status of a process from its record and, if it is alive, from its own answers.

    Args:
        process: the record.
        live: whether the supervisor is alive; the process is asked only then.
        config: configuration of the run, for TLS; None for plain text.
        answers: health and version that the process gave a moment ago; None asks it.
    """
    if not live or process.pid is None:
        state = process.state if live or process.state == "ended" else "gone"
        return _without_answer(process, state=state)
    tls = config.tls if config is not None else None
    metrics_tls = config.metrics_tls if config is not None else None
    (healthy, version), (waiting, seconds) = await asyncio.gather(
        _answers(process, tls, metrics_tls) if answers is None else _known(answers),
        _waiting(process.metrics, metrics_tls),
    )
    return ServiceStatus(
        name=process.name,
        state=process.state,
        pid=process.pid,
        restarts=process.restarts,
        up_seconds=max(0.0, time.time() - process.started),
        healthy=healthy,
        version=version,
        waiting=waiting,
        waiting_seconds=seconds,
        log=process.log,
    )


async def _known(answers: tuple[bool | None, str]) -> tuple[bool | None, str]:
    return answers


async def _answers(
    process: ProcessRecord, tls: TlsSection | None, metrics_tls: TlsSection | None
) -> tuple[bool | None, str]:
    """Return what a process answers to a health check, None if it has none, and the version it serves."""
    if process.grpc:
        healthy = await GrpcHealth(process.grpc, tls)()
        return healthy, await _version(process, tls) if healthy else ""
    host, _, port = (process.http or process.redis).rpartition(":")
    if process.http:
        return await HttpHealth(host, int(port), READY_PATH, metrics_tls)(), ""
    if process.redis:
        return await RedisPing(host, int(port))(), ""
    return None, ""


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


async def _waiting(address: str, tls: TlsSection | None) -> tuple[str, float]:
    """Return the longest wait that `/waiting` reports, if it has lasted a second, and its seconds.

    A phase in which the trainer works is recorded there for its watchdog; it is no wait.
    """
    if not address:
        return "", 0.0
    host, _, port = address.rpartition(":")
    try:
        found = json.loads(await get(host, int(port), "/waiting", tls=tls) or b"[]")
        for wait in found:
            phase = str(wait["detail"]).partition(":")[0]
            works = wait["what"] == "phase" and phase not in _WAITING_PHASES
            if wait["seconds"] >= _SHORTEST_WAIT_SECONDS and not works:
                task = "" if wait["task"] is None else f" for task {wait['task']}"
                return f"{wait['detail'] or wait['what']}{task}", float(wait["seconds"])
    except (ValueError, KeyError, TypeError):
        pass
    return "", 0.0


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
