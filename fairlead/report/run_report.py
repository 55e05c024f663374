"""The report of a run: report.html, which is what the live page shows, and report.json.

Reads only the run's folder: no model, no service.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from fairlead.config import RunFolder
from fairlead.config.saving import replace_text
from fairlead.local.status import RunStatus
from fairlead.report import confirmation, evaluation, now, run_record
from fairlead.report.guards import guards
from fairlead.report.page import Headline, Page, PageSection, render
from fairlead.report.run_record import RunRecord
from fairlead.report.sections import learning, preferences, samples_of, training, work


def write_report(folder: RunFolder, status: RunStatus) -> None:
    """Write the report of a run with its status."""
    record = run_record.read(folder)
    write(folder, page_of(record, status), figures_of(record))


def write(folder: RunFolder, page: Page, figures: Mapping[str, object]) -> None:
    """Write report.html and report.json; the page refers to no other file."""
    folder.root.mkdir(parents=True, exist_ok=True)
    replace_text(folder.report_html, render(page), mode=0o644)
    replace_text(folder.report_json, json_text(figures), mode=0o644)


def json_text(figures: Mapping[str, object]) -> str:
    """Return strict JSON; a number that is not finite becomes null."""
    return json.dumps(_finite(figures), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


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
        "confirmed": found.share if (found := confirmation.confirmation(record)) is not None else None,
        "seconds": record.seconds_per_phase,
        "samples": record.evaluation.get("samples", []),
        "card": dict(record.card),
    }


def sections_of(record: RunRecord) -> list[PageSection]:
    """Return the sections that follow from the record only."""
    return [
        *guards(record),
        *confirmation.section(record),
        *learning(record, without=("reward", "kl")),
        *evaluation.sections(record.card),
        *work(record),
        *preferences(record),
        *training(record),
    ]


def page_of(
    record: RunRecord,
    status: RunStatus,
    *,
    live: bool = False,
    sections: Sequence[PageSection] | None = None,
) -> Page:
    """Return the page of a run.

    Args:
        record: what its folder holds.
        status: what it is doing.
        live: show the figures of the moment at the top, and the newest answers, in place of results.
        sections: of the record, if they were made before.
    """
    done = len(record.updates)
    lead = f"PPO has made {done} updates." if done else "PPO has not made an update yet."
    if record.preference and not done:
        lead = f"The policy was trained on preferences with the loss {record.preference.get('loss')}."
    samples = tuple(samples_of(record))
    text = "The first prompts of the evaluation, answered by the policy before and after PPO."
    title = "Answers before and after"
    if live or not samples:
        samples = now.latest_samples(record)
        title = "Answers side by side"
        text = (
            "The answers of the last update with the highest, the middle and the lowest score, and beside "
            "each the first saved answer to the same prompt."
        )
    return Page(
        title=f"Run {record.name}",
        lead="" if live else lead,
        headlines=now.headlines(record, status) if live else tuple(_results(record)),
        sections=(now.now(record, status), *(sections_of(record) if sections is None else sections)),
        samples=samples,
        samples_text=text,
        footer=f"Made by Fairlead from the folder of run {record.name}.",
        state=now.state_of(status),
        samples_title=title,
    )


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _results(record: RunRecord) -> list[Headline]:
    found = []
    _, rewards = record.curve("reward")
    if rewards:
        meaning = f"Mean score in the first and the last of {len(rewards)} updates."
        found.append(Headline(f"{rewards[0]:+.2f} → {rewards[-1]:+.2f}", "reward model's score", meaning))
    _, kl = record.curve("kl")
    if kl:
        found.append(Headline(f"{kl[-1]:.1f}", "KL to the reference", "Nats per answer, at the last update."))
    confirmed = confirmation.confirmation(record)
    if confirmed is not None and confirmed.share is not None:
        meaning = confirmation.sentence(confirmed)
        found.append(Headline(f"{confirmed.share:.0%}", "of the gain confirmed", meaning))
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
