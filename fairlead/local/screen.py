"""The status of a run as text for a terminal: `fairlead status`, and the live view of a stage.

What is wrong comes first, every figure has a fixed place, and what a process waits for is always shown. Draws
a `RunStatus`; reads nothing.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from fairlead.local import verdict
from fairlead.local.numbers import duration, number
from fairlead.local.run_files import StageProgress
from fairlead.local.status import RunStatus, ServiceStatus
from fairlead.local.verdict import Severity

_STYLES: Mapping[Severity, str] = {"good": "green", "busy": "cyan", "warn": "yellow", "bad": "red"}
_SIGNS: Mapping[Severity, str] = {"good": "·", "busy": "·", "warn": "!", "bad": "✗"}
_OLD_SECONDS = 5.0
_LONG_SECONDS = 60.0
"""A wait of this length is shown with the tasks that it is for."""
_TICKS = "▁▂▃▄▅▆▇█"
_LABEL, _VALUE, _SPARK, _GAP = 10, 8, 17, 3
_CELL = _LABEL + _VALUE + 1 + _SPARK
_STATE_WIDTH = 10
_MAX_FINDING_LINES = 3
_FIRST_RESULTS = (
    *("heldout_loss", "accuracy", "ece", "updates", "episodes", "proxy_first", "proxy_last", "kl"),
    *("tasks_lost", "tasks_duplicated", "dead_letters", "seconds"),
)


@dataclass(frozen=True, slots=True)
class _Slot:
    """The place of one figure."""

    label: str
    """What is written before it."""
    value: float | None
    """The figure; None if the run has not reported it."""
    curve: Sequence[float] = ()
    """Its course, oldest first."""
    note: str = ""
    """Written in place of the course."""


def draw(found: RunStatus, width: int, *, rows: int | None = None, elapsed: float | None = None) -> Text:
    """Return the status as lines of at most `width` columns.

    Args:
        found: the status.
        width: in columns.
        rows: show at most this many processes; those that are not well come first.
        elapsed: seconds since the stage was started, for the live view.
    """
    lines = [*_headline(found, width, elapsed), *_findings(found, width)]
    now = found.progress
    if now is not None:
        lines += _progress(found, now, width)
        lines += _figures(found, now, width)
        lines += [*_guard(found, width), *_queue(found, now, width)]
    elif found.state == "running":
        lines.append(Text(verdict.sentence(found), "cyan"))
    lines += _finished(found, width)
    if found.services and all(service.state == "ended" for service in found.services):
        lines.append(Text(f"all {len(found.services)} processes have ended", "dim"))
    elif found.services:
        lines += [Text(), *_processes(found.services, width, rows)]
    return Text("\n").join(_fitted(lines, width))


def headline(title: str, parts: Sequence[str | Text], width: int) -> list[Text]:
    """Return title and parts in as few lines as they need; parent folders are left out if they do not fit."""
    whole = _joined([Text(title, "bold"), *map(_text, parts)])
    if whole.cell_len <= width:
        return [whole]
    lines = [Text(title.rpartition("/")[2], "bold")]
    for part in map(_text, parts):
        longer = _joined([lines[-1], part])
        if longer.cell_len <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def phase(now: StageProgress, *, long: bool = True) -> str:
    """Return the current phase of a stage, and what it does or waits for; `long` with the tasks."""
    text = f"{now.phase}: {now.doing}" if now.doing else now.phase
    if now.waiting_for:
        what = now.waiting_for if long else now.waiting_for.partition(":")[0]
        text += f" for {what}" if now.phase == "wait" else f", waiting for {what}"
    return text


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the last `width` values as a line of bars; what is not finite leaves a gap."""
    shown = list(values)[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return ""
    low, size = min(finite), max(finite) - min(finite)
    top = len(_TICKS) - 1
    return "".join(
        " " if not math.isfinite(value) else _TICKS[round((value - low) / size * top) if size else 0]
        for value in shown
    )


def result_figures(result: Mapping[str, object]) -> str:
    """Return the most important figures of a stage's result in one line."""
    return ", ".join(
        f"{name.replace('_', ' ')} {number(float(value))}"
        for name in _FIRST_RESULTS
        if isinstance(value := result.get(name), int | float)
    )


def _headline(found: RunStatus, width: int, elapsed: float | None) -> list[Text]:
    parts: list[str | Text] = [Text(verdict.word(found), _STYLES[verdict.severity(found)])]
    if found.stage:
        parts.append(found.stage.replace("_", "-"))
    now = found.progress
    if now is not None:
        parts.append(f"{verdict.unit(now.stage)} {now.step:,} of {now.total:,}")
    elif found.state == "new":
        parts.append("no stage has reported progress yet")
    if elapsed is not None:
        parts.append(duration(elapsed))
    if now is not None and _is_running(found) and now.eta_seconds is not None and now.step < now.total:
        parts.append(f"ETA {duration(now.eta_seconds)}")
    return headline(found.run, parts, width)


def _findings(found: RunStatus, width: int) -> Iterator[Text]:
    for finding in verdict.findings(found):
        wrapped = textwrap.wrap(
            finding.text, max(10, width - 2), max_lines=_MAX_FINDING_LINES, placeholder=" …"
        )
        for place, line in enumerate(wrapped):
            sign = _SIGNS[finding.severity] if place == 0 else " "
            yield Text(f"{sign} {line}", _STYLES[finding.severity])


def _progress(found: RunStatus, now: StageProgress, width: int) -> Iterator[Text]:
    if found.state != "running":
        return
    length = min(width, 100)
    done = round(length * min(1.0, now.step / max(1, now.total)))
    yield Text.assemble(("━" * done, "green"), ("━" * (length - done), "bright_black"))
    if found.reason or now.phase == "done":
        return
    seconds = found.phase_seconds or 0.0
    ago = "" if found.phase_seconds is None else f" · {duration(seconds)}"
    text = phase(now, long=seconds >= _LONG_SECONDS)
    yield Text.assemble((_cut(text, width - len(ago)), "cyan"), (ago, "dim"))


def _figures(found: RunStatus, now: StageProgress, width: int) -> Iterator[Text]:
    """Yield the figures in a grid: the same one is always in the same place."""
    slots = _slots(found, now)
    columns = max(1, min(4, (width + _GAP) // (_CELL + _GAP)))
    spark = min(_SPARK, width - _LABEL - _VALUE - 1)
    for first in range(0, len(slots), columns):
        line = Text()
        for place, slot in enumerate(slots[first : first + columns]):
            line.append(" " * (place * (_CELL + _GAP) - line.cell_len))
            line.append(f"{slot.label:<{_LABEL}}", "dim")
            value = "–" if slot.value is None else number(slot.value)
            line.append(f"{value:>{_VALUE}}", "bold").append(" ")
            line.append(_cut(slot.note or sparkline(slot.curve, spark), spark), "dim")
        yield line
    if found.figures_step is not None and found.figures_step != now.step:
        yield Text(f"the figures are those of {verdict.unit(now.stage)} {found.figures_step:,}", "dim")


def _slots(found: RunStatus, now: StageProgress) -> list[_Slot]:
    def slot(name: str, label: str = "") -> _Slot:
        return _Slot(label or name, now.figures.get(name), found.recent.get(name, ()))

    if now.stage != "ppo":
        return [
            slot("loss"),
            slot("accuracy"),
            slot("tokens_per_second", "tokens/s"),
            slot("gradient_norm", "gradient"),
        ]
    best = found.best_reward
    return [
        slot("reward"),
        slot("kl", "KL"),
        _Slot("best", best[1] if best else None, note=f"at update {best[0]:,}" if best else ""),
        slot("entropy"),
        slot("response_length", "length"),
        _Slot("rollouts/s", found.rollouts_per_second),
        slot("eos_rate", "ended"),
        slot("tokens_per_second", "tokens/s"),
    ]


def _guard(found: RunStatus, width: int) -> Iterator[Text]:
    if not found.signals:
        return
    beyond = [signal for signal in found.signals if signal.level != "quiet"]
    within = len(found.signals) - len(beyond)
    parts = [f"{verdict.signal_words(signal)} ({signal.level})" for signal in beyond]
    noun = ("other" if beyond else "signal") + ("" if within == 1 else "s")
    text = "; ".join([*parts, f"{within} {noun} within limits"])
    style = "red" if any(signal.level == "stop" for signal in beyond) else "yellow" if beyond else ""
    yield from _labelled("guard", text, width, style)


def _queue(found: RunStatus, now: StageProgress, width: int) -> Iterator[Text]:
    figures = now.figures
    if "staleness_mean" in figures:
        most = number(figures.get("staleness_max", 0))
        yield from _labelled(
            "staleness", f"{number(figures['staleness_mean'])} updates, at most {most}", width
        )
    names = (("queue_waiting", "waiting"), ("queue_in_flight", "in flight"), ("queue_outcomes", "outcomes"))
    counts = [f"{figures[name]:,.0f} {words}" for name, words in names if name in figures]
    if queue := found.queue:
        sizes = f"{queue.waiting:,} waiting, {queue.in_flight:,} in flight, {queue.outcomes:,} outcomes"
        yield from _labelled("queue", sizes, width)
    elif counts:
        yield from _labelled("queue", f"{', '.join(counts)}{_age(found)}", width)


def _age(found: RunStatus) -> str:
    """Return how old the figures are, if they are not of now."""
    seconds = found.figures_seconds_ago
    if not _is_running(found) or seconds is None or seconds < _OLD_SECONDS:
        return ""
    return f", as of {seconds:.0f} s ago" if seconds < 120 else f", as of {duration(seconds)} ago"


def _labelled(label: str, text: str, width: int, style: str = "") -> Iterator[Text]:
    for place, line in enumerate(textwrap.wrap(text, max(10, width - _LABEL)) or [""]):
        yield Text.assemble((f"{label if place == 0 else '':<{_LABEL}}", "dim"), (line, style))


def _finished(found: RunStatus, width: int) -> Iterator[Text]:
    for stage, result in found.finished_stages.items():
        text = f"{stage.replace('_', '-')} has finished: {result_figures(result)}"
        yield from (Text(line, "dim") for line in textwrap.wrap(text, width, subsequent_indent="  "))


def _processes(services: Sequence[ServiceStatus], width: int, rows: int | None) -> Iterator[Text]:
    """Yield a row for every process, those that are not well first."""
    order: tuple[Severity, ...] = ("bad", "warn", "busy", "good")
    ranked = sorted(services, key=lambda service: order.index(verdict.of_service(service)))
    shown = ranked if rows is None or len(ranked) <= rows else ranked[: max(1, rows - 1)]
    name_width = max(len("process"), *(len(service.name) for service in services))
    left = width - name_width - 2 - _STATE_WIDTH - 2
    inline = left >= 24
    waits_width = 0 if not inline else min(left, 28 if left < 80 else 50)
    extras = _extras(services, left - waits_width - 2) if inline else []
    header = f"{'process':<{name_width}}  {'state':<{_STATE_WIDTH}}"
    header += f"  {'waits for':<{waits_width}}" if inline else ""
    header += "".join(
        f"  {title:>{size}}" if right else f"  {title:<{size}}" for title, size, right, _ in extras
    )
    yield Text(header.rstrip(), "dim")
    for service in shown:
        how = verdict.of_service(service)
        line = Text(f"{service.name:<{name_width}}  ")
        line.append(f"{_cut(verdict.health(service), _STATE_WIDTH):<{_STATE_WIDTH}}", _STYLES[how])
        waits = _waits(service, waits_width if inline else width - 2)
        if inline:
            line.append(f"  {waits or '–':<{waits_width}}", "yellow" if how == "warn" else "")
        for place, (_, size, right, _) in enumerate(extras):
            cell = extras[place][3][service.name]
            line.append(f"  {cell:>{size}}" if right else f"  {cell:<{size}}", "dim")
        line.rstrip()
        yield line
        if waits and not inline:
            yield Text(f"  {waits}", "yellow" if how == "warn" else "dim")
    if len(shown) < len(ranked):
        yield Text(f"and {len(ranked) - len(shown)} more", "dim")


def _extras(services: Sequence[ServiceStatus], left: int) -> list[tuple[str, int, bool, dict[str, str]]]:
    """Return the columns that fit beside name, state and wait: title, width, whether right-aligned, cells."""
    found = []
    columns: tuple[tuple[str, int, bool, Callable[[ServiceStatus], str]], ...] = (
        ("serves", 8, False, lambda one: one.version or "–"),
        ("restarts", 8, True, lambda one: str(one.restarts)),
        ("up", 8, True, lambda one: "–" if one.up_seconds is None else duration(one.up_seconds)),
        ("pid", 7, True, lambda one: str(one.pid or "–")),
        ("log", 0, False, lambda one: one.log),
    )
    for title, least, right, cell in columns:
        cells = {service.name: cell(service) for service in services}
        size = max(least, *map(len, cells.values()))
        if title == "serves" and not any(service.version for service in services):
            size = least
        if size + 2 > left:
            break
        left -= size + 2
        found.append((title, size, right, cells))
    return found


def _waits(service: ServiceStatus, width: int) -> str:
    if not service.waiting:
        return ""
    ago = f", {service.waiting_seconds:.0f} s" if service.waiting_seconds else ""
    return _cut(service.waiting, width - len(ago)) + ago


def _is_running(found: RunStatus) -> bool:
    return found.state == "running" and not found.reason


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)].rstrip() + "…"


def _text(part: str | Text) -> Text:
    return part if isinstance(part, Text) else Text(part)


def _joined(parts: Sequence[Text]) -> Text:
    return Text(" · ").join(parts)


def _fitted(lines: Sequence[Text], width: int) -> Iterator[Text]:
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        yield line
