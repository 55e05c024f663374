"""The sections of a report: what was learned, how time was spent, the balance of the queue, samples.

The reports of runs and of the examples, and the live page, are built from them. Reads a record only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fairlead.metrics import statistics
from fairlead.report import charts
from fairlead.report.charts import Limit, Mark
from fairlead.report.guards import limits_of, settings_of
from fairlead.report.page import PageAnswer, PageSample, PageSection, Picture, Table
from fairlead.report.run_record import RunRecord

_CURVES = ("reward", "kl", "response_length", "entropy", "eos_rate", "accuracy", "mismatch_max")
"""Statistics of the section on learning; `fairlead.metrics.statistics` says what they mean."""

_PLAIN_UNITS = ("", "score", "share")
_STAGES = {"sft": "Fine-tuning", "reward_model": "Reward model"}
_PHASES = {
    "start": "starting",
    "wait": "waiting for rollouts",
    "prepare": "preparing the batch",
    "train": "training",
    "publish": "publishing weights",
    "checkpoint": "checkpointing",
    "evaluate": "evaluating",
}


def curve_picture(record: RunRecord, name: str, *, marks: Sequence[Mark] = ()) -> Picture | None:
    """Return a curve over updates with the limits of its signal; None if there are no figures."""
    statistic = statistics.find(name)
    x, y = record.curve(name)
    if not x or statistic is None:
        return None
    chart = charts.lines(
        {statistic.title: (x, y)},
        x_label="update",
        y_min=statistic.minimum,
        marks=marks,
        limits=_limits(record, name, statistic.signal),
    )
    unit = f" In {statistic.unit}." if statistic.unit not in _PLAIN_UNITS else ""
    caption = f"{statistic.meaning}{unit} {statistic.good}".strip()
    return Picture(title=statistic.title, chart=chart, caption=caption)


def learning(
    record: RunRecord,
    *,
    extra: Sequence[Picture] = (),
    marks: Sequence[Mark] = (),
    without: Sequence[str] = (),
) -> list[PageSection]:
    """Return the curves over updates; empty before the first update.

    Args:
        record: the run.
        extra: pictures before the curves.
        marks: vertical lines in each of them.
        without: curves that the page shows elsewhere.
    """
    pictures = list(extra)
    for name in (*_CURVES, *record.curve_names("term_")):
        if name in without:
            continue
        if (picture := curve_picture(record, name, marks=marks)) is not None:
            pictures.append(picture)
    if not pictures:
        return []
    text = (
        "What changed from update to update. The reward by itself can mislead: read it with the other curves."
    )
    return [PageSection(title="Learning", text=text, pictures=tuple(pictures))]


def training(record: RunRecord) -> list[PageSection]:
    """Return the curves of supervised fine-tuning and of the reward model over their steps."""
    pictures = []
    for stage, title in _STAGES.items():
        rows = record.steps.get(stage, ())
        for key, words in (("loss", "loss"), ("accuracy", "accuracy")):
            curves: dict[str, tuple[list[float], list[float]]] = {}
            for row in rows:
                if key in row:
                    name = f"model {row['member']}" if row.get("member") else title
                    x, y = curves.setdefault(name, ([], []))
                    x.append(float(row["step"]))
                    y.append(float(row[key]))
            if curves:
                picture = charts.lines(curves, x_label="step")
                pictures.append(Picture(title=f"{title}: {words}", chart=picture))
    if not pictures:
        return []
    text = "The stages before PPO, step by step."
    return [PageSection(title="Stages before PPO", text=text, pictures=tuple(pictures))]


def preferences(record: RunRecord) -> list[PageSection]:
    """Return the curves of the preference stage over its steps; empty before its first step."""
    if not record.preference_steps:
        return []
    curves = (
        (
            {"training": "accuracy", "held out": "heldout_accuracy"},
            "Accuracy of implied rewards",
            "Share of comparisons, or of thumbs, that β·(log π − log π_ref) orders as labelled.",
        ),
        (
            {"preferred": "heldout_chosen_change", "others": "heldout_rejected_change"},
            "Change of held-out answers",
            "Log-prob of an answer minus that under the reference, in nats. If preferred answers fall too, "
            "probability moves to answers that nobody has compared.",
        ),
    )
    pictures = []
    for names, title, caption in curves:
        found = {
            label: (
                [float(row["step"]) for row in record.preference_steps if row.get(key) is not None],
                [float(row[key]) for row in record.preference_steps if row.get(key) is not None],
            )
            for label, key in names.items()
        }
        shown = {label: curve for label, curve in found.items() if curve[0]}
        if shown:
            picture = charts.lines(shown, x_label="step")
            pictures.append(Picture(title=title, chart=picture, caption=caption))
    text = "Training on comparisons or thumbs without a reward model; the reference is the initial policy."
    return [PageSection(title="Preferences", text=text, pictures=tuple(pictures))]


def work(record: RunRecord) -> list[PageSection]:
    """Return how the time was spent, and the balance of the queue; empty if neither is known."""
    sections = []
    spent = record.seconds_per_phase
    rows = [name for name in _PHASES if name in spent]
    if rows:
        total = sum(spent[name] for name in rows)
        spans = [(_PHASES[name], start, end) for name, start, end in record.spans if name in _PHASES]
        picture = Picture(
            title="Phases of the trainer over time",
            chart=charts.timeline(spans, rows=[_PHASES[name] for name in rows]),
            caption="While the trainer waits, the policy, reward and reference services work on the prompts "
            "of the next update. On a single machine they share the processor with the trainer.",
            wide=True,
        )
        table = Table(
            columns=("phase", "seconds", "share"),
            rows=tuple(
                (_PHASES[name], f"{spent[name]:.1f}", f"{spent[name] / total:.0%}")
                for name in spent
                if name in rows
            ),
        )
        waiting = spent.get("wait", 0.0) / total
        text = f"PPO took {total:.0f} seconds, {waiting:.0%} of which it waited for rollouts."
        sections.append(PageSection(title="Time", text=text, pictures=(picture,), tables=(table,)))
    if record.queue:
        sections.append(_queue(record.queue))
    return sections


def samples_of(record: RunRecord) -> list[PageSample]:
    """Return the samples of the evaluation; empty without one."""
    found = []
    for row in record.evaluation.get("samples", []):
        answers = (
            PageAnswer(
                text=str(row.get(side, "")),
                scores=(("score", float(row[f"score_{side}"])),) if f"score_{side}" in row else (),
            )
            for side in ("before", "after")
        )
        found.append(PageSample(str(row.get("prompt", "")), *answers))
    return found


def _limits(record: RunRecord, curve: str, signal: str) -> list[Limit]:
    """Return the limits of a curve; those of a ratio to the first updates are turned into values."""
    section = settings_of(record)
    if not signal or section.action == "off":
        return []
    limits = limits_of(section, signal)
    if not signal.endswith("_ratio"):
        return limits
    _, values = record.curve(curve)
    _, ratios = record.curve(f"guard_{signal}")
    if not ratios or not ratios[-1] or not values:
        return []
    first = values[-1] / ratios[-1]
    return [replace(limit, value=limit.value * first) for limit in limits]


def _queue(queue: Mapping[str, int]) -> PageSection:
    meanings = {
        "tasks_dispatched": "prompt tasks sent to the workers",
        "tasks_trained": "trained on exactly once",
        "tasks_no_signal": "left out: all answers had the same reward",
        "tasks_duplicated": "trained on more than once",
        "tasks_lost": "neither trained on nor ended as a dead letter",
        "dead_letters": "dead letters: failed for good, with a reason",
    }
    rows = tuple((text, f"{queue[name]:,}") for name, text in meanings.items() if name in queue)
    text = (
        "Every prompt is a task in the queue and must end in exactly one way, whichever process fails. The "
        "numbers come from the trainer's ledger."
    )
    return PageSection(title="Queue", text=text, tables=(Table(columns=("tasks", "number"), rows=rows),))
