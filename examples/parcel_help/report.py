"""The quickstart's page: headline figures, the reward model, what PPO did, answers side by side.

Adds gold to the sections that every run's report has; the numbers come from `figures`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.parcel_help import figures, gold, reward_report
from examples.parcel_help.figures import Round
from examples.parcel_help.files import Files
from fairlead.config import RunConfig
from trainer import charts, durable, run_record
from trainer.charts import Mark
from trainer.guard_report import guards
from trainer.page import Headline, Page, PageAnswer, PageSample, PageSection, Picture, Table, render
from trainer.report import learning, work
from trainer.run_record import RunRecord

_STAGES = {
    "corpus": "writing demonstrations and prompts",
    "sft": "fine-tuning",
    "sample": "answers to be ranked",
    "rank": "ranking",
    "reward_model": "training the reward model",
    "ppo": "PPO",
    "evaluate": "answers of the tuned policy",
    "evaluate_and_sample": "answers of the tuned policy, and those to be ranked next",
    "report": "this report",
}


def write(config: RunConfig, files: Files, *, num_rounds: int, seconds: Mapping[str, float]) -> None:
    """Writes report.html and report.json from what the stages left."""
    begun = time.monotonic()
    rounds = [figures.read_round(config, files, number) for number in range(num_rounds)]
    numbers = figures.report_json(config, rounds, seconds)
    config.folder.report_html.write_text(render(page(config, rounds, numbers)), encoding="utf-8")
    own = time.monotonic() - begun
    numbers["seconds"] |= {"report": own, "total": numbers["seconds"]["total"] + own}
    durable.write_json(config.folder.report_json, numbers)


def summary(path: Path) -> str:
    """The headline figures of a report.json, as lines for a terminal."""
    numbers = json.loads(path.read_text(encoding="utf-8"))
    first, last, queue = numbers["rounds"][0]["ppo"], numbers["rounds"][-1]["ppo"], numbers["queue"]
    model = numbers["rounds"][-1]["reward_model"]
    gold_course = [first["gold_before"], *(found["ppo"]["gold_after"] for found in numbers["rounds"])]
    return "\n".join(
        (
            f"win rate against SFT   {last['win_rate_vs_sft']:.2f}  (by gold, on held-out prompts)",
            f"gold reward            {' → '.join(f'{value:+.2f}' for value in gold_course)}",
            f"reward model's score   {last['proxy_before']:+.2f} → {last['proxy_after']:+.2f}",
            f"reward model           right on {model['accuracy_labels']:.0%} of held-out labels, "
            f"{model['accuracy_gold']:.0%} by gold",
            f"queue                  {queue['tasks_trained']} of {queue['tasks_dispatched']} tasks "
            "trained on, "
            f"{queue['tasks_lost']} lost, {queue['tasks_duplicated']} doubled",
            f"time                   {numbers['seconds']['total']:.0f} s",
        )
    )


def page(config: RunConfig, rounds: Sequence[Round], numbers: Mapping[str, Any]) -> Page:
    """The whole page."""
    last, record = rounds[-1], run_record.joined([found.record for found in rounds])
    marks = boundaries(rounds)
    again = "; then its own answers were ranked, and it all went round again" if len(rounds) > 1 else ""
    return Page(
        title="Parcel help: a language model learns to help",
        lead="A small language model was fine-tuned on answers of mixed quality, simulated labelers ranked "
        f"its answers, a reward model learned their taste, and PPO tuned the model to please it{again}: "
        "through the same services that a cluster runs. In this small world the true worth of an answer, its "
        f"gold reward, is known exactly: the best answer is worth {gold.BEST:.1f}. Labelers see it dimly, "
        "training never.",
        headlines=tuple(_headlines(last, numbers)),
        sections=(
            _outcome(config, rounds, numbers),
            *([reward_report.round_by_round(numbers)] if len(rounds) > 1 else []),
            reward_report.reward_model(last, numbers["rounds"][-1]["reward_model"]),
            *learning(
                record, extra=[proxy_and_gold(record, marks)] if record.rollout_samples else [], marks=marks
            ),
            *guards(record),
            *work(record),
            _stages(numbers["seconds"]),
        ),
        samples=tuple(_samples(numbers["samples"])),
        samples_text="Drawn at random, not chosen. Gold is the true worth of an answer, proxy what the last "
        "reward model thinks of it.",
        footer=f"Seed {config.seed}. The figures of this page stand in report.json beside it.",
    )


def boundaries(rounds: Sequence[Round]) -> list[Mark]:
    """A line where each round but the first begins, on the axis of all updates."""
    marks, done = [], 0
    for number, found in enumerate(rounds[:-1], start=2):
        done += len(found.record.updates)
        marks.append(Mark(done + 0.5, f"round {number}"))
    return marks


def proxy_and_gold(record: RunRecord, marks: Sequence[Mark]) -> Picture:
    """What PPO was told to raise, and what it was meant to raise, over the updates."""
    curves = {"reward model": record.curve("reward"), "gold": figures.gold_by_update(record)}
    return Picture(
        title="Proxy and gold",
        source=charts.lines(curves, x_label="update", marks=marks, wide=True),
        caption="The reward model's score of every update's answers, and the true worth of those that were "
        "kept. A new reward model begins a new scale; what counts is whether both rise.",
        wide=True,
    )


def _headlines(found: Round, numbers: Mapping[str, Any]) -> list[Headline]:
    ppo, model, queue = numbers["rounds"][-1]["ppo"], numbers["rounds"][-1]["reward_model"], numbers["queue"]
    low, high = ppo["win_rate_interval"]
    course = [numbers["rounds"][0]["ppo"]["gold_before"]]
    course += [one["ppo"]["gold_after"] for one in numbers["rounds"]]
    return [
        Headline(
            f"{ppo['win_rate_vs_sft']:.0%}",
            "win rate against SFT",
            "How often an answer of the tuned policy is truly better than one of the policy it started "
            f"from; an even match is 50%. 95% interval {low:.0%} to {high:.0%}, on {ppo['heldout_prompts']} "
            "prompts that no stage was trained on.",
        ),
        Headline(
            " → ".join(f"{value:+.2f}" for value in course),
            "gold reward",
            "True worth of an answer, on average: of the fine-tuned policy, and behind each round of PPO.",
        ),
        Headline(
            f"{ppo['proxy_before']:+.2f} → {ppo['proxy_after']:+.2f}",
            "reward model's score",
            "What PPO was told to raise, in the last round. Where it rises and gold does not, the reward is "
            "gamed, not earned.",
        ),
        Headline(
            f"{model['accuracy_labels']:.0%}",
            "of labels foreseen",
            "The reward model's share of held-out comparisons that it orders as the labelers did. Two "
            f"labelers agree with each other on {found.agreement:.0%}.",
        ),
        Headline(
            str(queue["tasks_lost"] + queue["tasks_duplicated"]),
            "tasks lost or doubled",
            f"Of {queue['tasks_dispatched']} prompts that went through the queue, {queue['tasks_trained']} "
            "were trained on, each once.",
        ),
        Headline(
            f"{numbers['seconds']['total']:.0f} s",
            "from nothing to here",
            "Every stage on this machine, with the start and stop of all services; this page left out.",
        ),
    ]


def _outcome(config: RunConfig, rounds: Sequence[Round], numbers: Mapping[str, Any]) -> PageSection:
    last, found = numbers["rounds"][-1]["ppo"], rounds[-1]
    sides = {"SFT": found.sft} | {f"round {number}": one.after for number, one in enumerate(rounds, start=1)}
    spread = {
        name: [worth for group in figures.worths(answers, list(found.after)).values() for worth in group]
        for name, answers in sides.items()
    }
    rates = {
        f"round {number}": float(one["ppo"]["win_rate_vs_sft"])
        for number, one in enumerate(numbers["rounds"], start=1)
    }
    if last["training_prompts"] is not None:
        rates["prompts of\nthe training"] = float(last["training_prompts"]["win_rate_vs_sft"])
    pictures = (
        Picture(
            title="Win rate against SFT",
            source=charts.bars(rates, x_label="share of comparisons won, by gold", limit=1, mark=0.5),
            caption="On held-out prompts after each round, and on prompts of the training at the end: that "
            "tells whether the policy learned to help, or only these questions by heart. Ties count half; "
            "the dashed line is an even match.",
        ),
        Picture(
            title="True worth of answers",
            source=charts.histograms(spread, x_label="gold reward of an answer"),
            caption="All answers of the evaluation. PPO should move the bulk to the right, and leave few "
            "answers of negative worth: rude or wrong ones.",
        ),
    )
    text = (
        f"PPO answered {sum(one['ppo']['episodes'] for one in numbers['rounds'])} prompts and moved the "
        f"policy by {last['kl']:.1f} nats per answer from where it started."
        if last["kl"] is not None
        else ""
    )
    return PageSection(title="What came of it", text=text, pictures=pictures)


def _stages(seconds: Mapping[str, float]) -> PageSection:
    spent = {name: value for name, value in seconds.items() if name != "total"}
    total = sum(spent.values())
    rows = []
    for name, value in spent.items():
        stage, _, number = name.partition("-")
        title = _STAGES[stage] + (f", round {int(number) + 1}" if number else "")
        rows.append((title, f"{value:.1f}", f"{value / total:.0%}"))
    return PageSection(
        title="Stages",
        text="The whole loop, stage by stage. Each is also a command of its own.",
        tables=(Table(columns=("stage", "seconds", "share"), rows=tuple(rows)),),
    )


def _samples(rows: list[dict[str, Any]]) -> list[PageSample]:
    def answer(row: Mapping[str, Any], side: str) -> PageAnswer:
        return PageAnswer(row[side], (("gold", row[f"gold_{side}"]), ("proxy", row[f"proxy_{side}"])))

    return [PageSample(row["prompt"], answer(row, "before"), answer(row, "after")) for row in rows]
