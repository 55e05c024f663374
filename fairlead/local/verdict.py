"""What a run is doing in one sentence, and what is wrong with it, the worst first.

`fairlead status`, the live view and the page say the same, because they take it from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fairlead.local.numbers import duration, number
from fairlead.local.status import RunStatus, ServiceStatus, SignalStatus

Severity = Literal["good", "busy", "warn", "bad"]
"""All is well; starting or ending; worth a look; wrong."""

LONG_WAIT_SECONDS = 15.0
"""A wait that is longer is a finding; a service answers within seconds."""
_SILENT_SECONDS = 120.0
_STARVED = 0.8
_DOING = {
    "sft": "fine-tuning",
    "reward_model": "training the reward model",
    "preference": "training on preferences",
    "ppo": "learning",
    "evaluation": "evaluating",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong or worth a look."""

    severity: Severity
    """How bad it is."""
    text: str
    """What it is, in a sentence without a full stop."""


def severity(found: RunStatus) -> Severity:
    """Return how the whole run is: as bad as its worst finding."""
    worst = {finding.severity for finding in findings(found)}
    for level in ("bad", "warn"):
        if level in worst:
            return level
    return "busy" if found.state in ("new", "unknown") or _is_starting(found) else "good"


def word(found: RunStatus) -> str:
    """Return the state in a word."""
    if found.state == "running":
        return "ending" if found.reason else "starting" if _is_starting(found) else "running"
    return found.state


def sentence(found: RunStatus) -> str:
    """Return the state in one sentence."""
    now = found.progress
    doing = _DOING.get(found.stage, found.stage or "the run")
    if found.state == "new":
        return "No stage has reported progress yet."
    if found.state == "running" and found.reason:
        return f"{found.reason[0].upper()}{found.reason[1:]}."
    if found.state == "running" and _is_starting(found):
        late = [service.name for service in found.services if not _is_ready(service)]
        return f"Starting {doing}: waits for {_listed(late)}." if late else f"Starting {doing}."
    if now is None:
        return f"{found.state.capitalize()} before the first report."
    at = f"{unit(now.stage)} {now.step:,} of {now.total:,}"
    if found.state == "running":
        waits = ""
        if found.share_waiting is not None:
            waits = f"; waits for rollouts {found.share_waiting:.0%} of the time"
        return f"{doing.capitalize()}: {at}{waits}."
    return f"{found.state.capitalize()} at {at}."


def findings(found: RunStatus) -> list[Finding]:
    """Return what is wrong, the worst first."""
    said: list[Finding] = []
    if found.state in ("failed", "crashed"):
        said.append(Finding("bad", found.reason or found.state))
    elif found.state == "stopped":
        by_guard = any(signal.level == "stop" for signal in found.signals)
        said.append(Finding("bad" if by_guard else "warn", found.reason or "stopped"))
    elif found.state == "unknown" and found.reason:
        said.append(Finding("warn", found.reason))
    if found.state == "running":
        said += _of_services(found)
        if (found.said_seconds_ago or 0.0) > _SILENT_SECONDS and not found.reason:
            said.append(
                Finding("warn", f"the stage last reported {duration(found.said_seconds_ago or 0)} ago")
            )
        if found.share_waiting is not None and found.share_waiting > _STARVED:
            said.append(Finding("warn", f"the trainer waits {found.share_waiting:.0%} of the time"))
    said += _of_guard(found.signals)
    if found.last_error and found.state != "finished":
        said.append(Finding("warn", f"last error: {found.last_error}"))
    order = ("bad", "warn", "busy", "good")
    return sorted(said, key=lambda finding: order.index(finding.severity))


def of_service(service: ServiceStatus) -> Severity:
    """Return how a process of a running run is."""
    if service.state in ("backoff", "restarting", "gone") or (
        service.healthy is False and _claims_ready(service)
    ):
        return "bad"
    if service.waiting_seconds >= LONG_WAIT_SECONDS:
        return "warn"
    return "good" if _is_ready(service) or service.state == "ended" else "busy"


def health(service: ServiceStatus) -> str:
    """Return the state of a process in a word or two, its own answer included."""
    if service.healthy is False and _claims_ready(service):
        return "no answer"
    return service.state


def signal_words(signal: SignalStatus) -> str:
    """Return a signal with its value and the limit that it is beyond."""
    name = signal.name.replace("_", " ").replace("kl", "KL")
    if signal.limit is None:
        return f"{name} {number(signal.value)}"
    return (
        f"{name} {number(signal.value)} {'>' if signal.value > signal.limit else '<'} {number(signal.limit)}"
    )


def unit(stage: str) -> str:
    """Return what a stage counts."""
    return "update" if stage == "ppo" else "step"


def _of_services(found: RunStatus) -> list[Finding]:
    said = []
    starting = _is_starting(found)
    for service in found.services:
        how = of_service(service)
        restarts = f", {service.restarts} restarts" if service.restarts else ""
        if how == "bad" and service.healthy is False:
            said.append(Finding("bad", f"{service.name} does not answer{restarts}"))
        elif how == "bad":
            said.append(Finding("bad", f"{service.name} is {service.state}{restarts}"))
        elif how == "warn" and not starting:
            waits = f"{service.name} waits for {service.waiting}, {duration(service.waiting_seconds)}"
            said.append(Finding("warn", waits))
        elif service.restarts and how == "busy":
            said.append(Finding("warn", f"{service.name} is {service.state} again{restarts}"))
    return said


def _of_guard(signals: tuple[SignalStatus, ...]) -> list[Finding]:
    levels: tuple[tuple[str, Severity, str], ...] = (
        ("stop", "bad", "guard, beyond the stop limit"),
        ("warn", "warn", "guard warns"),
    )
    said = []
    for level, how, words in levels:
        if beyond := [signal_words(signal) for signal in signals if signal.level == level]:
            said.append(Finding(how, f"{words}: {', '.join(beyond)}"))
    return said


def _is_starting(found: RunStatus) -> bool:
    """Return whether no step was reported yet and the stage is not past its start."""
    now = found.progress
    if found.state != "running" or found.reason:
        return False
    return now is None or now.phase == "start"


def _claims_ready(service: ServiceStatus) -> bool:
    return service.state in ("ready", "running")


def _is_ready(service: ServiceStatus) -> bool:
    return _claims_ready(service) and service.healthy is not False


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
