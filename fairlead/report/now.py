"""The first screen of a page: the state in a sentence, reward and KL, signals, waits, processes, samples.

Made from the status of a run and its record; the same for a live page and a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fairlead.local import verdict
from fairlead.local.json_lines import Row
from fairlead.local.numbers import duration, number
from fairlead.local.status import RunStatus
from fairlead.report import charts
from fairlead.report.guards import strip
from fairlead.report.page import (
    Headline,
    PageAnswer,
    PageSample,
    PageSection,
    Picture,
    State,
    Table,
)
from fairlead.report.run_record import RunRecord
from fairlead.report.sections import curve_picture

_NUM_SAMPLES = 3
_RECENT_UPDATES = 20
_OLD_SECONDS = 5.0
_MIB = 1 << 20
_NO_PROCESS = ("new", "unknown", "finished")


def state_of(status: RunStatus) -> State:
    """Return what the run is doing or how it ended, and what is wrong."""
    found = [(finding.severity, finding.text) for finding in verdict.findings(status)]
    return State(verdict.severity(status), verdict.word(status), verdict.sentence(status), tuple(found))


def headlines(record: RunRecord, status: RunStatus) -> tuple[Headline, ...]:
    """Return the figures that an operator looks for first."""
    now = status.progress
    if now is None:
        return ()
    running = status.state == "running"
    found = [Headline(f"{now.step:,} of {now.total:,}", f"{verdict.unit(now.stage)}s")]
    if running and now.eta_seconds is not None and now.step < now.total:
        found.append(Headline(duration(now.eta_seconds), "time left"))
    names = (
        (("reward", "reward"), ("kl", "KL"), ("entropy", "entropy"), ("response_length", "length"))
        if now.stage == "ppo"
        else (("loss", "loss"), ("accuracy", "accuracy"))
    )
    for name, label in names:
        if name in now.figures:
            found.append(Headline(number(now.figures[name]), label))
        if name == "reward" and status.best_reward is not None:
            update, reward = status.best_reward
            found.append(Headline(number(reward), f"best, at {update}"))
    if status.rollouts_per_second is not None:
        found.append(Headline(number(status.rollouts_per_second), "rollouts/s"))
    return tuple(found)


def now(record: RunRecord, status: RunStatus) -> PageSection:
    """Return the section with the state of everything at a glance."""
    curves = (curve_picture(record, name) for name in ("reward", "kl"))
    pictures = [replace(picture, caption="") for picture in curves if picture is not None]
    if waits := _waits(record):
        pictures.append(waits)
    signals = strip(record)
    if signals:
        pictures.append(Picture(title="Guard", chart=signals, wide=True))
    tables = []
    if status.services and status.state not in _NO_PROCESS:
        tables.append(_processes(status))
    if queue := _queue(status):
        tables.append(queue)
    return PageSection(
        title="Now" if status.state == "running" else "At the end",
        text="",
        pictures=tuple(pictures),
        tables=tuple(tables),
    )


def latest_samples(record: RunRecord) -> tuple[PageSample, ...]:
    """Return answers of the last update beside the first saved answers to the same prompts."""
    rows = [row for row in record.rollout_samples if {"update", "prompt", "text", "score"} <= row.keys()]
    if not rows:
        return ()
    last = int(rows[-1]["update"])
    newest = [row for row in rows if row["update"] == last]
    earlier: dict[str, Row] = {}
    for row in rows:
        if row["update"] < last:
            earlier.setdefault(str(row["prompt"]), row)
    paired = [row for row in newest if str(row["prompt"]) in earlier]
    return tuple(_sample(row, earlier.get(str(row["prompt"]))) for row in _spread(paired or newest))


def _spread(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the lowest, a middle and the highest score."""
    ranked = sorted(rows, key=lambda row: float(row["score"]))
    if len(ranked) <= _NUM_SAMPLES:
        return ranked[::-1]
    return [ranked[-1], ranked[len(ranked) // 2], ranked[0]]


def _sample(row: Row, earlier: Row | None) -> PageSample:
    before = None if earlier is None else _answer(earlier)
    return PageSample(str(row["prompt"]), before, _answer(row))


def _answer(row: Row) -> PageAnswer:
    return PageAnswer(str(row["text"]), (("score", float(row["score"])),), f"update {int(row['update'])}")


def _waits(record: RunRecord) -> Picture | None:
    """Return where the time of the last updates went."""
    rows = record.updates[-_RECENT_UPDATES:]
    seconds: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("seconds_") and isinstance(value, int | float):
                phase = name.removeprefix("seconds_")
                seconds[phase] = seconds.get(phase, 0.0) + value
    total = sum(seconds.values())
    if not total:
        return None
    shares = {
        name: 100 * value / total
        for name, value in sorted(seconds.items(), key=lambda one: -one[1])
        if value / total >= 0.005
    }
    updates = f"the last {len(rows)} updates" if len(rows) > 1 else "the first update"
    return Picture(
        title="Where the time goes",
        chart=charts.bars(
            shares, x_label=f"share of the time of {updates}", limit=100.0, unit="%", decimals=0
        ),
    )


def _processes(status: RunStatus) -> Table:
    order = ("bad", "warn", "busy", "good")
    ranked = sorted(status.services, key=lambda service: order.index(verdict.of_service(service)))
    rows = tuple(
        (
            service.name,
            verdict.health(service),
            f"{service.waiting}, {service.waiting_seconds:.0f} s"
            if service.waiting_seconds
            else service.waiting or "–",
            service.version or "–",
            str(service.restarts),
            "–" if service.up_seconds is None else duration(service.up_seconds),
        )
        for service in ranked
    )
    return Table(
        columns=("process", "state", "waits for", "serves", "restarts", "up"),
        rows=rows,
        levels=tuple(verdict.of_service(service) for service in ranked),
        texts=("state", "waits for", "serves"),
    )


def _queue(status: RunStatus) -> Table | None:
    """Return the queue and the staleness of rollouts, with the age of these figures."""
    now = status.progress
    names = {
        "queue_waiting": "tasks waiting",
        "queue_in_flight": "tasks in flight",
        "queue_outcomes": "outcomes",
        "staleness_mean": "staleness, mean",
        "staleness_max": "staleness, most",
    }
    figures = dict(now.figures) if now is not None else {}
    queue = status.queue
    if queue is not None:
        figures |= {
            "queue_waiting": queue.waiting,
            "queue_in_flight": queue.in_flight,
            "queue_outcomes": queue.outcomes,
        }
    if not any(name in figures for name in names):
        return None
    columns = tuple(words for name, words in names.items() if name in figures)
    row = tuple(number(figures[name]) for name in names if name in figures)
    age = f"queue as of update {status.figures_step}"
    if queue is not None:
        age = "queue now"
        columns += ("memory of Redis",)
        limit = f" of {queue.limit_bytes / _MIB:,.0f}" if queue.limit_bytes else ""
        row += (f"{queue.memory_bytes / _MIB:,.1f}{limit} MiB",)
    elif status.state == "running" and status.figures_seconds_ago is not None:
        seconds = status.figures_seconds_ago
        age = "queue now" if seconds < _OLD_SECONDS else f"queue as of {seconds:.0f} s ago"
    return Table(columns=("figures", *columns), rows=((age, *row),))
