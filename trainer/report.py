"""The report of any run: `python -m trainer.report RUN` or `--config run.toml` writes report.html and .json.

Reports of the examples are built from the same sections. Reads only the run's folder: no model, no service.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fairlead.config import RunFolder, load, parse_overrides
from fairlead.errors import ConfigError, FairleadError
from trainer import charts, durable, run_record
from trainer.charts import Mark
from trainer.guard_report import guards
from trainer.page import Headline, Page, PageAnswer, PageSample, PageSection, Picture, Table, render
from trainer.run_record import RunRecord

_CURVES = (
    ("reward", "Reward", "Mean score of the reward model for the answers of each update.", None),
    (
        "kl",
        "Distance from the start (KL)",
        "How far the policy has moved from the reference, in nats per answer. A steep climb late in a run "
        "often means that the reward model is being gamed.",
        0.0,
    ),
    (
        "response_length",
        "Length of answers",
        "Tokens per answer. If it drifts, read the samples.",
        0.0,
    ),
    (
        "entropy",
        "Entropy",
        "How varied the policy's next token is, in nats. Near zero, it always gives the same answer.",
        0.0,
    ),
    (
        "eos_rate",
        "Answers that end",
        "Share of answers that end with a stop token instead of being cut off at the length limit.",
        0.0,
    ),
    (
        "accuracy",
        "Accuracy of pairs",
        "Online DPO: share of the pairs of best and worst answers that β·(log π − log π_ref) orders so.",
        0.0,
    ),
    (
        "mismatch_max",
        "Sampler against trainer",
        "Largest difference between the log-prob that the policy service recorded and the trainer's own, "
        "before the first step of an update. Near zero means that both run the same model.",
        0.0,
    ),
)

_PHASES = {
    "start": "starting",
    "wait": "waiting for rollouts",
    "prepare": "preparing the batch",
    "train": "training",
    "publish": "publishing weights",
    "checkpoint": "checkpointing",
    "evaluate": "evaluating",
}


def write(folder: RunFolder, page: Page, figures: Mapping[str, object]) -> None:
    """Write report.html and report.json; the page refers to no other file."""
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.report_html.write_text(render(page), encoding="utf-8")
    durable.write_json(folder.report_json, figures)


def figures_of(record: RunRecord) -> dict[str, object]:
    """Return the contents of report.json."""
    return {
        "run": record.name,
        "sft": dict(record.sft),
        "reward_model": dict(record.reward_model),
        "preference": dict(record.preference),
        "ppo": dict(record.ppo),
        "queue": record.queue,
        "guards": list(record.ppo.get("guards", ())),
        "seconds": record.seconds_per_phase,
        "samples": record.evaluation.get("samples", []),
    }


def page_of(record: RunRecord) -> Page:
    """Return the report page of a run."""
    done = len(record.updates)
    lead = f"PPO has made {done} updates." if done else "PPO has not made an update yet."
    if record.preference and not done:
        lead = f"The policy was trained on preferences with the loss {record.preference.get('loss')}."
    return Page(
        title=f"Run {record.name}",
        lead=lead,
        headlines=tuple(_headlines(record)),
        sections=(*preferences(record), *learning(record), *guards(record), *work(record)),
        samples=tuple(samples_of(record)),
        samples_text="The first prompts of the evaluation, answered by the policy before and after PPO.",
        footer=f"Made by Fairlead from the folder of run {record.name}.",
    )


def learning(
    record: RunRecord, *, extra: Sequence[Picture] = (), marks: Sequence[Mark] = ()
) -> list[PageSection]:
    """Return the curves over updates, with vertical lines at `marks`; empty before the first update."""
    pictures = list(extra)
    for name, title, caption, y_min in _CURVES:
        x, y = record.curve(name)
        if x:
            picture = charts.lines({title: (x, y)}, x_label="update", y_min=y_min, marks=marks)
            pictures.append(Picture(title=title, source=picture, caption=caption))
    for name in record.curve_names("term_"):
        x, y = record.curve(name)
        title = f"Term {name.removeprefix('term_')}"
        picture = charts.lines({title: (x, y)}, x_label="update", marks=marks)
        pictures.append(Picture(title=title, source=picture, caption="Mean score of a term of the reward."))
    if not pictures:
        return []
    text = (
        "What changed from update to update. The reward by itself can mislead: read it with the other curves."
    )
    return [PageSection(title="Learning", text=text, pictures=tuple(pictures))]


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
            pictures.append(Picture(title=title, source=picture, caption=caption))
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
            source=charts.timeline(spans, rows=[_PHASES[name] for name in rows]),
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


def _headlines(record: RunRecord) -> list[Headline]:
    found = []
    _, rewards = record.curve("reward")
    if rewards:
        meaning = f"Mean score in the first and the last of {len(rewards)} updates."
        found.append(Headline(f"{rewards[0]:+.2f} → {rewards[-1]:+.2f}", "reward model's score", meaning))
    _, kl = record.curve("kl")
    if kl:
        found.append(Headline(f"{kl[-1]:.1f}", "KL to the reference", "Nats per answer, at the last update."))
    if record.queue:
        bad = record.queue.get("tasks_lost", 0) + record.queue.get("tasks_duplicated", 0)
        meaning = f"Of {record.queue.get('tasks_dispatched', 0)} prompt tasks; each must count exactly once."
        found.append(Headline(str(bad), "tasks lost or duplicated", meaning))
    if "accuracy" in record.reward_model:
        meaning = "Share of held-out comparisons that the reward model orders as the labelers did."
        found.append(Headline(f"{record.reward_model['accuracy']:.0%}", "reward model's accuracy", meaning))
    if record.preference.get("accuracy") is not None:
        meaning = "Share of held-out comparisons that the rewards implied by the policy order as labelled."
        found.append(Headline(f"{record.preference['accuracy']:.0%}", "accuracy of preferences", meaning))
    before, after = (record.reward_model.get(key) for key in ("ece", "ece_calibrated"))
    if before is not None and after is not None:
        temperature = record.reward_model["temperature"]
        meaning = (
            "Mean difference between its confidence and its accuracy, with raw scores and with scores "
            f"divided by its temperature, {temperature:.2f} (each pair is judged by a temperature fitted to "
            "other prompts)."
        )
        found.append(Headline(f"{before:.3f} → {after:.3f}", "reward model's calibration error", meaning))
    return found


def _queue(queue: Mapping[str, int]) -> PageSection:
    meanings = {
        "tasks_dispatched": "prompt tasks sent to the workers",
        "tasks_trained": "trained on exactly once",
        "tasks_no_signal": "left out: all answers had the same reward",
        "tasks_duplicated": "trained on more than once",
        "tasks_lost": "neither trained on nor ended as a dead letter",
        "dead_letters": "dead letters: failed for good, with a reason",
    }
    rows = tuple((text, str(queue[name])) for name, text in meanings.items() if name in queue)
    text = (
        "Every prompt is a task in the queue and must end in exactly one way, whichever process fails. The "
        "numbers come from the trainer's ledger."
    )
    return PageSection(title="Queue", text=text, tables=(Table(columns=("tasks", "number"), rows=rows),))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report of a run; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.report", description="Write the report of a run."
    )
    parser.add_argument("run", nargs="?", type=Path, help="the folder of the run")
    parser.add_argument(
        "--config", type=Path, default=None, help="the TOML file of the run, instead of its folder"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    options = parser.parse_args(argv)
    try:
        if options.run is not None:
            folder = RunFolder(options.run)
        else:
            folder = load(options.config, overrides=parse_overrides(options.set)).folder
        if not folder.root.is_dir():
            raise ConfigError("run", got=str(folder.root), allowed="the folder of a run")
        record = run_record.read(folder)
        write(folder, page_of(record), figures_of(record))
    except FairleadError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    sys.stderr.write(f"{folder.report_html}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
