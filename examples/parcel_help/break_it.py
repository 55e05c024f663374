"""`fairlead quickstart --break-it`: the quickstart with two deliberate mistakes, to show reward hacking.

The reward model learns from only 100 labelled tasks, and PPO, or another method, runs 40 updates without a KL
penalty: the proxy rises, gold falls. Writes break_it.html and break_it.json. The stages are those of the
quickstart.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from examples.parcel_help import figures, gold, measures
from fairlead.config import RunConfig
from fairlead.report import charts, run_record
from fairlead.report.charts import Mark
from fairlead.report.guards import guards, meaning_of
from fairlead.report.page import Headline, Page, PageAnswer, PageSample, PageSection, Picture, render
from fairlead.report.run_record import RunRecord
from fairlead.report.sections import learning
from trainer import durable

NUM_TASKS = 100
"""Number of ranked tasks; the quickstart ranks several times as many per round."""
NUM_UPDATES = 40
WEAK_KL_COEFFICIENT = 0.01
"""β of methods that cannot learn without one."""

LEAST_GAIN = 0.1
"""Smallest gain in gold that is not noise: the difference of two means of three updates has an error of
± 0.06."""
SMOOTHING = 3
"""Number of updates whose gold is averaged: 256 answers give it to ± 0.08, three times as many to ± 0.045."""


def broken(config: RunConfig) -> RunConfig:
    """Return the configuration of a run that games its reward, in its own folder; guards only warn."""
    weak = WEAK_KL_COEFFICIENT if config.ppo.estimator == "pairs" else 0.0
    return config.model_copy(
        update={
            "name": f"{config.name}-break-it",
            "ppo": config.ppo.model_copy(
                update={
                    "updates": NUM_UPDATES,
                    "kl_coefficient": weak,
                }
            ),
            "iterate": config.iterate.model_copy(update={"tasks": NUM_TASKS}),
            "guard": config.guard.model_copy(update={"action": "warn"}),
        }
    )


def write(config: RunConfig) -> None:
    """Write break_it.html and break_it.json from the results of the stages."""
    record = run_record.read(config.folder)
    numbers = outcome(record)
    (config.folder.root / "break_it.html").write_text(render(page(config, record, numbers)), encoding="utf-8")
    durable.write_json(config.folder.root / "break_it.json", numbers)


def outcome(record: RunRecord) -> dict[str, Any]:
    """Return what happened, and what a guard with `action = "stop"` would have saved.

    `confirmed` is the share of the proxy's gain that gold confirms; None if the proxy did not rise. `fired`
    is the first alert of level `stop`. `half_lost` is the first update after the peak at which gold
    has lost half of its gain, if the gain was larger than noise. Both are None if there is none. `signals`
    has the first alert of every signal and level, with gold and proxy of its update.
    """
    updates, gold_rewards = figures.gold_by_update(record)
    gold_rewards = smooth(gold_rewards)
    _, proxies = record.curve("reward")
    peak = max(range(len(gold_rewards)), key=gold_rewards.__getitem__)
    half = gold_rewards[0] + (gold_rewards[peak] - gold_rewards[0]) / 2
    gained = gold_rewards[peak] - gold_rewards[0] >= LEAST_GAIN
    lost = next(
        (int(updates[i]) for i in range(peak, len(gold_rewards)) if gained and gold_rewards[i] < half), None
    )
    stops = [alert for alert in record.ppo.get("guards", ()) if alert["level"] == "stop"]
    fired = min(stops, key=lambda alert: float(alert["update"])) if stops else None
    by_update = dict(zip(updates, gold_rewards, strict=True))
    gold_fired = by_update.get(float(fired["update"])) if fired else None
    alerts = list(record.ppo.get("guards", ()))
    return {
        "proxy_first": proxies[0],
        "proxy_last": proxies[-1],
        "gold_first": gold_rewards[0],
        "gold_peak": gold_rewards[peak],
        "gold_peak_update": int(updates[peak]),
        "gold_gained": gained,
        "gold_last": gold_rewards[-1],
        "confirmed": measures.confirmed(
            gold_gain=gold_rewards[-1] - gold_rewards[0], proxy_gain=proxies[-1] - proxies[0]
        ),
        "half_lost": lost,
        "fired": fired,
        "gold_fired": gold_fired,
        "gold_saved": None if gold_fired is None else gold_fired - gold_rewards[-1],
        "guards": alerts,
        "signals": [
            {
                **alert,
                "gold": by_update.get(float(alert["update"])),
                "proxy": proxies[int(alert["update"]) - 1],
            }
            for alert in firsts(alerts)
        ],
        "updates": updates,
        "gold": gold_rewards,
        "proxy": proxies,
    }


def smooth(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and the ones before it, up to `SMOOTHING` values in total."""
    return [fmean(values[max(0, i + 1 - SMOOTHING) : i + 1]) for i in range(len(values))]


def summary(config: RunConfig) -> str:
    """Format the outcome for a terminal."""
    numbers = json.loads((config.folder.root / "break_it.json").read_text(encoding="utf-8"))
    return "\n".join(
        (
            f"reward model's score   {numbers['proxy_first']:+.2f} → {numbers['proxy_last']:+.2f}",
            f"gold reward            {numbers['gold_first']:+.2f} → {numbers['gold_peak']:+.2f} at update "
            f"{numbers['gold_peak_update']} → {numbers['gold_last']:+.2f}",
            f"guard                  {_verdict(numbers)}",
            *(
                f"    update {each['update']:>2}: {each['level']} by {each['signal']}, "
                f"at gold {each['gold']:+.2f} and score {each['proxy']:+.2f}"
                for each in numbers["signals"]
            ),
        )
    )


def page(config: RunConfig, record: RunRecord, numbers: Mapping[str, Any]) -> Page:
    """Return the whole page."""
    marks = [
        Mark(float(alert["update"]), f"{alert['signal']}: {alert['level']}", alarm=alert["level"] == "stop")
        for alert in firsts(numbers["guards"])
    ]
    picture = Picture(
        title="Proxy and gold",
        chart=charts.lines(
            {"reward model": record.curve("reward"), "gold": (numbers["updates"], numbers["gold"])},
            x_label="update",
            marks=marks,
            wide=True,
        ),
        caption="The reward model's mean score of the answers of each update, and their mean gold reward "
        f"over {SMOOTHING} updates. At a dashed line a signal of reward hacking crossed its limit for the "
        "first time; at a red one a guard would have ended the run.",
        wide=True,
    )
    first = PageSection(
        title="The reward is gamed",
        text=f"{_verdict(numbers)} Training does not see gold: it saw only the rising curve.",
        pictures=(picture,),
    )
    return Page(
        title="Break it: reward hacking",
        lead=f"The quickstart with two deliberate mistakes. Labelers ranked the answers to {NUM_TASKS} tasks "
        "instead of many hundred, so the reward model knows little. "
        f"{'PPO' if config.ppo.has_critic else config.ppo.estimator} ran {NUM_UPDATES} updates "
        f"with {_penalty(config)} for leaving the fine-tuned policy (β = {config.ppo.kl_coefficient:g}). "
        "The policy finds answers that the "
        "reward model overrates.",
        headlines=tuple(_headlines(numbers)),
        sections=(first, *guards(record), *learning(record, marks=[Mark(mark.x) for mark in marks])),
        samples=tuple(_samples(record, config.evaluation.num_report_samples, seed=config.seed)),
        samples_text="Answers to prompts drawn at random, of the fine-tuned policy and the one that games "
        "its reward. Gold is the true quality of an answer, proxy its score by the reward model.",
        footer=f"Seed {config.seed}. The figures of this page are in break_it.json.",
    )


def _penalty(config: RunConfig) -> str:
    return "a weak penalty" if config.ppo.kl_coefficient else "no penalty"


def _headlines(numbers: Mapping[str, Any]) -> list[Headline]:
    fired = numbers["fired"]
    found = [
        Headline(
            f"{numbers['proxy_first']:+.2f} → {numbers['proxy_last']:+.2f}",
            "reward model's score",
            "What training optimized, at the first update and at the last.",
        ),
        Headline(
            f"{numbers['gold_first']:+.2f} → {numbers['gold_last']:+.2f}",
            "gold reward",
            f"What training should have raised. Its maximum was {numbers['gold_peak']:+.2f}, at update "
            f"{numbers['gold_peak_update']}.",
        ),
    ]
    if numbers["confirmed"] is not None:
        meaning = "Gold's gain from the first update to the last ÷ what the gain in score claims."
        found.append(Headline(f"{numbers['confirmed']:.0%}", "of the gain confirmed by gold", meaning))
    if fired is not None:
        meaning = (
            f"The first signal that crossed a stop limit: {fired['value']:.2f}, with a limit of "
            f"{fired['threshold']:g}. {meaning_of(fired['signal'])}"
        )
        found.append(Headline(f"update {fired['update']}", "a guard would have stopped it", meaning))
    if numbers["gold_saved"] is not None:
        meaning = "Gold when the guard fired, minus gold at the end: what stopping there would have saved."
        found.append(Headline(f"{numbers['gold_saved']:+.2f}", "gold saved by the guard", meaning))
    return found


def _verdict(numbers: Mapping[str, Any]) -> str:
    fired, lost = numbers["fired"], numbers["half_lost"]
    if fired is None:
        return "No guard would have stopped the run."
    half = f"half of the gain in gold was lost at update {lost}" if lost else "gold kept half of its gain"
    if not numbers["gold_gained"]:
        half = "gold never rose by more than noise"
    return (
        f"A guard would have stopped the run at update {fired['update']} ({fired['signal']}), at a gold "
        f"reward of {numbers['gold_fired']:+.2f}; {half}, and the run ended at {numbers['gold_last']:+.2f}."
    )


def firsts(alerts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the first alert of every signal and level."""
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
