"""The signals of reward hacking on a page: a strip of them with their limits, curves, and when they fired.

Reads the record of a run; does not know how a signal is measured.
"""

from __future__ import annotations

from html import escape

from markupsafe import Markup
from pydantic import ValidationError

from fairlead.config.guard import GuardSection, Level
from fairlead.local.numbers import number
from fairlead.metrics import statistics
from fairlead.report import charts
from fairlead.report.charts import Limit, Mark
from fairlead.report.page import PageSection, Picture, Table
from fairlead.report.run_record import RunRecord

_STATISTIC = "guard_"
"""Prefix of the statistic of a signal."""


def guards(record: RunRecord) -> list[PageSection]:
    """Return the curves of all signals with their limits, and a table; empty for a run without them."""
    signals = _signals(record)
    if not signals:
        return []
    text = (
        f"{_summary(record)} The signals are measured on the answers of every update. No healthy run has "
        "crossed a stop limit. Variety falls in healthy runs too, so its limits only warn. Mild "
        "over-optimisation shows only in overconfidence, which needs human labels of the policy's answers."
    )
    section = settings_of(record)
    pictures = []
    for signal in signals:
        limits = limits_of(section, signal)
        marks = [
            Mark(float(alert["update"]), str(alert["level"]), alarm=alert["level"] == "stop")
            for alert in record.ppo.get("guards", ())
            if alert["signal"] == signal
        ]
        if limits:
            title = f"Signal {name_of(signal)}"
            chart = charts.lines(
                {name_of(signal): record.curve(f"{_STATISTIC}{signal}")},
                x_label="update",
                limits=limits,
                marks=marks,
            )
            pictures.append(Picture(title=title, chart=chart, caption=meaning_of(signal)))
    table = Table(
        columns=("signal", "first", "last", "range", "limits", "fired"),
        rows=tuple(_row(record, section, signal) for signal in signals),
        texts=("limits", "fired"),
    )
    return [
        PageSection(title="Signals of reward hacking", text=text, pictures=tuple(pictures), tables=(table,))
    ]


def strip(record: RunRecord) -> Markup:
    """Return all signals side by side with value, level, limits and a small curve; empty without any."""
    section = settings_of(record)
    found = []
    for signal in _signals(record):
        x, y = record.curve(f"{_STATISTIC}{signal}")
        level, _ = section.judge(signal, y[-1])
        limits = limits_of(section, signal)
        if section.action == "off":
            level, limits = "quiet", []
        said = "; ".join(map(str, limits)) or "no limit"
        curve = charts.spark(
            (x, y),
            limits=limits,
            description=f"{name_of(signal)} from {number(y[0])} to {number(y[-1])} over {len(y)} updates",
        )
        found.append(
            (
                _ORDER[level],
                f'<div class="signal {level}"><dt title="{escape(meaning_of(signal))}">{name_of(signal)}</dt>'
                f'<dd class="now">{number(y[-1])} <span class="level">{_WORDS[level]}</span></dd>'
                f'<dd>{curve}</dd><dd class="limits">{escape(said)}</dd></div>',
            )
        )
    # What is wrong comes first; the order is fixed otherwise.
    cells = [cell for _, cell in sorted(found, key=lambda one: one[0])]
    return Markup(f'<dl class="strip">{"".join(cells)}</dl>' if cells else "")


def meaning_of(signal: str) -> str:
    """Return what a signal measures, in a sentence."""
    found = statistics.find(f"{_STATISTIC}{signal}")
    return found.meaning if found is not None else signal


def _signals(record: RunRecord) -> list[str]:
    """Return the signals that the run has measured, in the order of the table of statistics."""
    known = [
        one.name.removeprefix(_STATISTIC) for one in statistics.STATISTICS if one.name.startswith(_STATISTIC)
    ]
    return [signal for signal in known if record.curve(f"{_STATISTIC}{signal}")[0]]


def name_of(signal: str) -> str:
    """Return a signal in words."""
    return {"kl": "KL", "kl_k3": "KL, k3"}.get(signal, signal.replace("_", " "))


def limits_of(section: GuardSection, signal: str) -> list[Limit]:
    """Return the limits of a signal as lines of a chart."""
    return [Limit(limit.value, limit.side, limit.level) for limit in section.limits(signal)]


def settings_of(record: RunRecord) -> GuardSection:
    """Return the limits of the run; the defaults if its configuration cannot be read."""
    try:
        return GuardSection.model_validate(dict(record.guard))
    except ValidationError:
        return GuardSection()


_ORDER = {"stop": 0, "warn": 1, "quiet": 2}
_WORDS = {"stop": "beyond stop", "warn": "warns", "quiet": "within"}


def _summary(record: RunRecord) -> str:
    stops = [alert for alert in record.ppo.get("guards", ()) if alert["level"] == "stop"]
    summary = "No signal crossed a stop limit."
    if stops:
        first = min(stops, key=lambda alert: float(alert["update"]))
        summary = f"The first stop limit was crossed at update {first['update']}: {first['signal']} "
        if first["threshold"] is None:
            summary += "was not finite."
        else:
            summary += f"at {first['value']:.3g}, with a limit of {first['threshold']:g}."
    if "stopped_by_guard" in record.ppo:
        summary += f" {record.ppo['stopped_by_guard']}."
    return summary


def _row(record: RunRecord, section: GuardSection, signal: str) -> tuple[str, ...]:
    """Return the values of a signal and when it first crossed each limit."""
    _, values = record.curve(f"{_STATISTIC}{signal}")
    fired: dict[str, int] = {}
    for alert in record.ppo.get("guards", ()):
        if alert["signal"] == signal:
            fired.setdefault(alert["level"], alert["update"])
    return (
        meaning_of(signal),
        number(values[0]),
        number(values[-1]),
        f"{number(min(values))} to {number(max(values))}",
        _limits(section, signal),
        ", ".join(f"{level} at {update}" for level, update in fired.items()) or "no",
    )


def _limits(section: GuardSection, signal: str) -> str:
    """Return all limits of a signal as text: `stop < 0.7, > 1.5`."""
    found: dict[Level, list[str]] = {"warn": [], "stop": []}
    for limit in section.limits(signal):
        found[limit.level].append(f"{'<' if limit.side == 'below' else '>'} {limit.value:g}")
    return "; ".join(f"{level} {', '.join(sides)}" for level, sides in found.items() if sides) or "none"
