"""The report of any run: `python -m trainer.report RUN` or `--config run.toml` writes report.html and .json.

Also the sections that an example's own report is built from. Reads the run's folder alone: no model, no
service.
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
    ("reward", "Reward", "Mean score that the reward model gives to the answers of each update.", None),
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
        "Tokens per answer. A drift is worth a look at the samples.",
        0.0,
    ),
    (
        "entropy",
        "Entropy",
        "How varied the policy's choice of the next token is, in nats. Near zero it says one thing only.",
        0.0,
    ),
    (
        "eos_rate",
        "Answers that end",
        "Share of answers that end by themselves instead of being cut off.",
        0.0,
    ),
    (
        "mismatch_max",
        "Sampler against trainer",
        "Largest gap between the log-prob that the policy service recorded and the trainer's own, before the "
        "first step of an update. Near zero: both run the same model.",
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
    """Writes both files; the page refers to no other file."""
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.report_html.write_text(render(page), encoding="utf-8")
    durable.write_json(folder.report_json, figures)


def figures_of(record: RunRecord) -> dict[str, object]:
    """What report.json of any run holds."""
    return {
        "run": record.name,
        "sft": dict(record.sft),
        "reward_model": dict(record.reward_model),
        "ppo": dict(record.ppo),
        "queue": record.queue,
        "guards": list(record.ppo.get("guards", ())),
        "seconds": record.seconds_per_phase,
        "samples": record.evaluation.get("samples", []),
    }


def page_of(record: RunRecord) -> Page:
    """The page of any run."""
    done = len(record.updates)
    return Page(
        title=f"Run {record.name}",
        lead=f"{done} PPO updates were made." if done else "PPO has not made an update yet.",
        headlines=tuple(_headlines(record)),
        sections=(*learning(record), *guards(record), *work(record)),
        samples=tuple(samples_of(record)),
        samples_text="The first prompts of the evaluation, answered by the policy before and after PPO.",
        footer=f"Made by Fairlead from the folder of run {record.name}.",
    )


def learning(
    record: RunRecord, *, extra: Sequence[Picture] = (), marks: Sequence[Mark] = ()
) -> list[PageSection]:
    """The curves over updates, with vertical lines at `marks`; none before the first update."""
    pictures = list(extra)
    for name, title, caption, floor in _CURVES:
        x, y = record.curve(name)
        if x:
            picture = charts.lines({title: (x, y)}, x_label="update", floor=floor, marks=marks)
            pictures.append(Picture(title=title, source=picture, caption=caption))
    if not pictures:
        return []
    text = (
        "What changed from update to update. The reward alone can deceive: read it beside the other curves."
    )
    return [PageSection(title="Learning", text=text, pictures=tuple(pictures))]


def work(record: RunRecord) -> list[PageSection]:
    """Where the time went, and the balance of the queue; empty where nothing is known."""
    sections = []
    spent = record.seconds_per_phase
    rows = [name for name in _PHASES if name in spent]
    if rows:
        total = sum(spent[name] for name in rows)
        spans = [(_PHASES[name], start, end) for name, start, end in record.spans if name in _PHASES]
        picture = Picture(
            title="What the trainer did when",
            source=charts.timeline(spans, rows=[_PHASES[name] for name in rows]),
            caption="While the trainer waits, policy, reward and reference services work on the prompts of "
            "the next update; on one machine they take turns with it.",
            wide=True,
        )
        table = Table(
            columns=("the trainer was", "seconds", "share"),
            rows=tuple(
                (_PHASES[name], f"{spent[name]:.1f}", f"{spent[name] / total:.0%}")
                for name in spent
                if name in rows
            ),
        )
        waiting = spent.get("wait", 0.0) / total
        text = f"PPO took {total:.0f} seconds; {waiting:.0%} of it was waiting for rollouts."
        sections.append(PageSection(title="Time", text=text, pictures=(picture,), tables=(table,)))
    if record.queue:
        sections.append(_queue(record.queue))
    return sections


def samples_of(record: RunRecord) -> list[PageSample]:
    """The evaluation's samples, if there are any."""
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
        meaning = f"Mean score of the first and of the last of {len(rewards)} updates."
        found.append(Headline(f"{rewards[0]:+.2f} → {rewards[-1]:+.2f}", "reward model's score", meaning))
    _, kl = record.curve("kl")
    if kl:
        found.append(Headline(f"{kl[-1]:.1f}", "KL to the reference", "Nats per answer, at the last update."))
    if record.queue:
        bad = record.queue.get("tasks_lost", 0) + record.queue.get("tasks_duplicated", 0)
        meaning = f"Of {record.queue.get('tasks_dispatched', 0)} prompt tasks; every one should count once."
        found.append(Headline(str(bad), "tasks lost or doubled", meaning))
    if "accuracy" in record.reward_model:
        meaning = "Share of held-out comparisons that the reward model orders as their labels do."
        found.append(Headline(f"{record.reward_model['accuracy']:.0%}", "reward model's accuracy", meaning))
    before, after = (record.reward_model.get(key) for key in ("ece", "ece_calibrated"))
    if before is not None and after is not None:
        temperature = record.reward_model["temperature"]
        meaning = (
            "Mean gap of how sure it is and how often it is right: of raw scores, and of scores divided by "
            f"its temperature, {temperature:.2f} (each pair judged by one fitted to other prompts)."
        )
        found.append(Headline(f"{before:.3f} → {after:.3f}", "reward model's calibration error", meaning))
    return found


def _queue(queue: Mapping[str, int]) -> PageSection:
    meanings = {
        "tasks_dispatched": "prompt tasks sent to the workers",
        "tasks_trained": "trained on, once",
        "tasks_duplicated": "trained on more than once",
        "tasks_lost": "neither trained on nor given up",
        "dead_letters": "given up, with a reason",
    }
    rows = tuple((text, str(queue[name])) for name, text in meanings.items() if name in queue)
    text = (
        "Every prompt is a task in the queue, and has to end in exactly one way, whatever dies on the way. "
        "The balance comes from the trainer's ledger."
    )
    return PageSection(title="Queue", text=text, tables=(Table(columns=("tasks", "number"), rows=rows),))


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report of a run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.report", description="Writes a run's report.")
    parser.add_argument("run", nargs="?", type=Path, help="the run's folder")
    parser.add_argument(
        "--config", type=Path, default=None, help="the run's TOML file, in place of the folder"
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
