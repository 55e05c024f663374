"""`fairlead quickstart --break-it`: the quickstart with two things done wrong, to see a reward being hacked.

A reward model from 100 labelled tasks, PPO without KL penalty for 40 updates: the proxy rises, gold falls.
Leaves break_it.html and break_it.json; the stages are the quickstart's own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from examples.parcel_help import figures, gold, rounds
from fairlead.config import RunConfig
from trainer import charts, durable, run_record
from trainer.charts import Mark
from trainer.guard_report import MEANINGS, guards
from trainer.page import Headline, Page, PageAnswer, PageSample, PageSection, Picture, render
from trainer.report import learning
from trainer.run_record import RunRecord

NUM_TASKS = 100
"""Tasks that labelers rank; the quickstart has several times as many a round."""
NUM_UPDATES = 40


LEAST_GAIN = 0.1
"""A gain in gold below this is chance: the difference of two means of three updates is known to ± 0.06."""
SMOOTHING = 3
"""Updates whose gold is averaged: 256 answers know it to ± 0.08, three times as many to ± 0.045."""


def broken(config: RunConfig) -> RunConfig:
    """The configuration of a run that will game its reward: in a folder of its own, and never stopped."""
    return config.model_copy(
        update={
            "name": f"{config.name}-break-it",
            "ppo": config.ppo.model_copy(
                update={
                    "updates": NUM_UPDATES,
                    "kl_coefficient": 0.0,
                }
            ),
            "guard": config.guard.model_copy(update={"action": "warn"}),
        }
    )


def write(config: RunConfig) -> None:
    """Writes break_it.html and break_it.json from what the stages left."""
    record = run_record.read(config.folder)
    numbers = outcome(record)
    (config.folder.root / "break_it.html").write_text(render(page(config, record, numbers)), encoding="utf-8")
    durable.write_json(config.folder.root / "break_it.json", numbers)


def outcome(record: RunRecord) -> dict[str, Any]:
    """What happened, and what a guard with `action = "stop"` would have saved.

    `fired` is the first stop-level alert; `half_lost` the first update behind the peak at which gold has lost
    half of what it had won, if it had won more than chance gives; both None if there was none.
    """
    updates, worths = figures.gold_by_update(record)
    worths = smooth(worths)
    _, proxies = record.curve("reward")
    peak = max(range(len(worths)), key=worths.__getitem__)
    half = worths[0] + (worths[peak] - worths[0]) / 2
    gained = worths[peak] - worths[0] >= LEAST_GAIN
    lost = next((int(updates[i]) for i in range(peak, len(worths)) if gained and worths[i] < half), None)
    stops = [alert for alert in record.ppo.get("guards", ()) if alert["level"] == "stop"]
    fired = min(stops, key=lambda alert: float(alert["update"])) if stops else None
    gold_fired = dict(zip(updates, worths, strict=True)).get(float(fired["update"])) if fired else None
    return {
        "proxy_first": proxies[0],
        "proxy_last": proxies[-1],
        "gold_first": worths[0],
        "gold_peak": worths[peak],
        "gold_peak_update": int(updates[peak]),
        "gold_gained": gained,
        "gold_last": worths[-1],
        "half_lost": lost,
        "fired": fired,
        "gold_fired": gold_fired,
        "gold_saved": None if gold_fired is None else gold_fired - worths[-1],
        "guards": list(record.ppo.get("guards", ())),
        "updates": updates,
        "gold": worths,
        "proxy": proxies,
    }


def smooth(course: Sequence[float]) -> list[float]:
    """The mean of each value and the ones before it, `SMOOTHING` in all where there are as many."""
    return [fmean(course[max(0, i + 1 - SMOOTHING) : i + 1]) for i in range(len(course))]


def summary(config: RunConfig) -> str:
    """What `write` found, in lines for a terminal."""
    numbers = json.loads((config.folder.root / "break_it.json").read_text(encoding="utf-8"))
    return "\n".join(
        (
            f"reward model's score   {numbers['proxy_first']:+.2f} → {numbers['proxy_last']:+.2f}",
            f"gold reward            {numbers['gold_first']:+.2f} → {numbers['gold_peak']:+.2f} at update "
            f"{numbers['gold_peak_update']} → {numbers['gold_last']:+.2f}",
            f"guard                  {_verdict(numbers)}",
        )
    )


def page(config: RunConfig, record: RunRecord, numbers: Mapping[str, Any]) -> Page:
    """The whole page."""
    marks = [
        Mark(float(alert["update"]), f"{alert['signal']}: {alert['level']}", alarm=alert["level"] == "stop")
        for alert in _firsts(numbers["guards"])
    ]
    picture = Picture(
        title="Proxy and gold",
        source=charts.lines(
            {"reward model": record.curve("reward"), "gold": (numbers["updates"], numbers["gold"])},
            x_label="update",
            marks=marks,
            wide=True,
        ),
        caption="The reward model's score of the answers of each update, and their true worth, the mean of "
        f"{SMOOTHING} updates. Dashed lines: "
        "a signal of reward hacking crossed its limit for the first time; red ones would have ended the run.",
        wide=True,
    )
    first = PageSection(
        title="The reward is gamed",
        text=f"{_verdict(numbers)} The training knew nothing of gold: it saw the rising curve alone.",
        pictures=(picture,),
    )
    return Page(
        title="Break it: a reward, hacked",
        lead=f"The quickstart with two things done wrong: labelers ranked the answers to {NUM_TASKS} tasks "
        f"instead of {rounds.NUM_TASKS}, so the reward model knows little, and PPO paid nothing for leaving "
        f"the fine-tuned policy (β = 0), for {NUM_UPDATES} updates. The policy finds what "
        "the reward model mistakes for good.",
        headlines=tuple(_headlines(numbers)),
        sections=(first, *guards(record), *learning(record, marks=[Mark(mark.x) for mark in marks])),
        samples=tuple(_samples(record, config.evaluation.num_report_samples, seed=config.seed)),
        samples_text="To prompts drawn at random: by the fine-tuned policy, and by the one that games its "
        "reward. Gold is the true worth of an answer, proxy what the reward model thinks of it.",
        footer=f"Seed {config.seed}. The figures of this page stand in break_it.json beside it.",
    )


def _headlines(numbers: Mapping[str, Any]) -> list[Headline]:
    fired = numbers["fired"]
    found = [
        Headline(
            f"{numbers['proxy_first']:+.2f} → {numbers['proxy_last']:+.2f}",
            "reward model's score",
            "What PPO was told to raise, at the first update and at the last.",
        ),
        Headline(
            f"{numbers['gold_first']:+.2f} → {numbers['gold_last']:+.2f}",
            "gold reward",
            f"What it was meant to raise. At its best, {numbers['gold_peak']:+.2f}, at update "
            f"{numbers['gold_peak_update']}.",
        ),
    ]
    if fired is not None:
        meaning = (
            f"The first signal to cross a stop limit, {MEANINGS[fired['signal']]}: {fired['value']:.2f}, "
            f"with a limit of {fired['threshold']:g}."
        )
        found.append(Headline(f"update {fired['update']}", "a guard would have stopped it", meaning))
    if numbers["gold_saved"] is not None:
        meaning = "Gold when the guard fired, less gold at the end: what stopping there would have saved."
        found.append(Headline(f"{numbers['gold_saved']:+.2f}", "gold saved by the guard", meaning))
    return found


def _verdict(numbers: Mapping[str, Any]) -> str:
    fired, lost = numbers["fired"], numbers["half_lost"]
    if fired is None:
        return "No guard would have stopped it."
    half = f"half of gold's gain was lost at update {lost}" if lost else "half of gold's gain was never lost"
    if not numbers["gold_gained"]:
        half = "gold never rose by more than chance"
    return (
        f"A guard would have stopped it at update {fired['update']} ({fired['signal']}), at a gold reward of "
        f"{numbers['gold_fired']:+.2f}; {half}, and the run ended at {numbers['gold_last']:+.2f}."
    )


def _firsts(alerts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first alert of every signal and level."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for alert in alerts:
        found.setdefault((alert["signal"], alert["level"]), alert)
    return list(found.values())


def _samples(record: RunRecord, count: int, *, seed: int) -> list[PageSample]:
    rows = record.rollout_samples
    last = max(row["update"] for row in rows)
    start = {row["prompt"]: row for row in rows if row["update"] == 1}
    end = {row["prompt"]: row for row in rows if row["update"] == last and row["prompt"] in start}
    chosen = random.Random(f"{seed} broken samples").sample(sorted(end), k=min(count, len(end)))
    return [PageSample(prompt, _answer(start[prompt]), _answer(end[prompt])) for prompt in chosen]


def _answer(row: Mapping[str, Any]) -> PageAnswer:
    worth = gold.reward(row["prompt"], row["text"], ended=row["ended"])
    return PageAnswer(row["text"], (("gold", worth), ("proxy", float(row["score"]))))
