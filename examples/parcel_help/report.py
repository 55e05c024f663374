"""The report of the quickstart: headline figures, the reward model, what PPO changed, answers side by side.

Adds the gold reward to the sections that every run's report has. The numbers come from `figures`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.parcel_help import figures, gold, measures, reward_report
from examples.parcel_help.figures import Round
from examples.parcel_help.files import Files
from fairlead.config import RunConfig
from fairlead.report import charts, run_record
from fairlead.report.charts import Mark
from fairlead.report.guards import guards
from fairlead.report.page import Headline, Page, PageAnswer, PageSample, PageSection, Picture, Table, render
from fairlead.report.run_record import RunRecord
from fairlead.report.sections import learning, work
from trainer import durable

_STAGES = {
    "corpus": "writing demonstrations and prompts",
    "sft": "fine-tuning on the demonstrations",
    "sample": "generating answers to rank",
    "judgments": "waiting for rankings",
    "reward_model": "training the reward model",
    "gate": "comparing the reward model with the one before",
    "ppo": "PPO",
    "evaluate": "evaluating the tuned policy",
    "evaluate_and_sample": "evaluating the tuned policy, and generating answers to rank",
    "report": "writing this report",
}


def write(config: RunConfig, files: Files, *, num_rounds: int, seconds: Mapping[str, float]) -> None:
    """Write report.html and report.json from the results of the stages."""
    started = time.monotonic()
    rounds = [figures.read_round(config, files, number) for number in range(num_rounds)]
    numbers = figures.report_json(config, rounds, seconds)
    config.folder.report_html.write_text(render(page(config, rounds, numbers)), encoding="utf-8")
    own = time.monotonic() - started
    numbers["seconds"] |= {"report": own, "total": numbers["seconds"]["total"] + own}
    durable.write_json(config.folder.report_json, numbers)


def summary(path: Path) -> str:
    """Format the headline figures of a report.json for a terminal."""
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
            f"{queue['tasks_lost']} lost, {queue['tasks_duplicated']} duplicated",
            f"time                   {numbers['seconds']['total']:.0f} s",
        )
    )


def page(config: RunConfig, rounds: Sequence[Round], numbers: Mapping[str, Any]) -> Page:
    """Return the whole page."""
    last, record = rounds[-1], run_record.joined([found.record for found in rounds])
    marks = boundaries(rounds)
    again = ", after which its own answers were ranked and the loop ran again" if len(rounds) > 1 else ""
    return Page(
        title="Parcel help: a language model learns to help",
        lead="A small language model was fine-tuned on answers of mixed quality. Simulated labelers ranked "
        f"its answers, a reward model learned their preferences, and PPO tuned the model for it{again}. "
        "Everything ran through the same services as on a cluster. In this example the true quality of an "
        f"answer, its gold reward, is known exactly; the best answer has {gold.BEST:.1f}. Labelers see it "
        "with noise, and training never sees it.",
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
        samples_text="Drawn at random, not selected. Gold is the true quality of an answer, proxy its score "
        "by the last reward model.",
        footer=f"Seed {config.seed}. The figures of this page are in report.json.",
    )


def boundaries(rounds: Sequence[Round]) -> list[Mark]:
    """Return a mark at the start of each round but the first, on the axis of all updates."""
    marks, done = [], 0
    for number, found in enumerate(rounds[:-1], start=2):
        done += len(found.record.updates)
        marks.append(Mark(done + 0.5, f"round {number}"))
    return marks


def proxy_and_gold(record: RunRecord, marks: Sequence[Mark]) -> Picture:
    """Return a picture of the reward that PPO optimizes and of the gold reward, over the updates."""
    curves = {"reward model": record.curve("reward"), "gold": figures.gold_by_update(record)}
    return Picture(
        title="Proxy and gold",
        chart=charts.lines(curves, x_label="update", marks=marks, wide=True),
        caption="The reward model's mean score of the answers of each update, and the mean gold reward of "
        "those kept. Each reward model has its own scale; what matters is whether both curves rise.",
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
            "How often an answer of the tuned policy is better, by gold, than one of the SFT policy; 50% "
            f"means equally good. 95% interval {low:.0%} to {high:.0%}, on {ppo['heldout_prompts']} prompts "
            "that no stage was trained on.",
        ),
        Headline(
            " → ".join(f"{value:+.2f}" for value in course),
            "gold reward",
            "Mean true quality of an answer: of the fine-tuned policy, and after each round of PPO.",
        ),
        Headline(
            f"{ppo['proxy_before']:+.2f} → {ppo['proxy_after']:+.2f}",
            "reward model's score",
            "What PPO optimized, in the last round. If it rises and gold does not, the reward is gamed, not "
            f"earned. {_confirmed(ppo)}".rstrip(),
        ),
        Headline(
            f"{model['accuracy_labels']:.0%}",
            "of labels predicted",
            "Share of held-out comparisons that the reward model orders as the labelers did. Two labelers "
            f"agree with each other on {found.agreement:.0%}.",
        ),
        Headline(
            str(queue["tasks_lost"] + queue["tasks_duplicated"]),
            "tasks lost or duplicated",
            f"Of {queue['tasks_dispatched']:,} prompts sent through the queue, "
            f"{queue['tasks_trained']:,} were trained on, each once.",
        ),
        Headline(
            f"{numbers['seconds']['total']:.0f} s",
            "in total",
            "All stages on this machine, including the start and stop of services, except for this page.",
        ),
    ]


def _confirmed(ppo: Mapping[str, Any]) -> str:
    share = measures.confirmed(
        gold_gain=ppo["gold_after"] - ppo["gold_before"], proxy_gain=ppo["proxy_after"] - ppo["proxy_before"]
    )
    return "" if share is None else f"Gold confirms {share:.0%} of what this gain claims."


def _outcome(config: RunConfig, rounds: Sequence[Round], numbers: Mapping[str, Any]) -> PageSection:
    last, found = numbers["rounds"][-1]["ppo"], rounds[-1]
    sides = {"SFT": found.sft} | {f"round {number}": one.after for number, one in enumerate(rounds, start=1)}
    spread = {
        name: [
            worth for group in figures.gold_rewards(answers, list(found.after)).values() for worth in group
        ]
        for name, answers in sides.items()
    }
    rates = {
        f"round {number}": float(one["ppo"]["win_rate_vs_sft"])
        for number, one in enumerate(numbers["rounds"], start=1)
    }
    if last["training_prompts"] is not None:
        rates["training prompts"] = float(last["training_prompts"]["win_rate_vs_sft"])
    pictures = (
        Picture(
            title="Win rate against SFT",
            chart=charts.bars(rates, x_label="share of comparisons won, by gold", limit=1, mark=0.5),
            caption="On held-out prompts after each round, and on training prompts at the end. A large "
            "difference would mean that the policy memorized the training prompts. Ties count half; at the "
            "line both are equally good.",
        ),
        Picture(
            title="Gold reward of answers",
            chart=charts.histograms(spread, x_label="gold reward of an answer"),
            caption="All answers of the evaluation. PPO should move most of them to the right, and leave few "
            "with a negative reward, which are rude or wrong.",
        ),
    )
    text = (
        f"PPO used answers to {sum(one['ppo']['episodes'] for one in numbers['rounds']):,} prompts and moved "
        f"the policy by {last['kl']:.1f} nats per answer from the SFT policy."
        if last["kl"] is not None
        else ""
    )
    return PageSection(title="Outcome", text=text, pictures=pictures)


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
        text="Time of each stage of the loop.",
        tables=(Table(columns=("stage", "seconds", "share"), rows=tuple(rows)),),
    )


def _samples(rows: list[dict[str, Any]]) -> list[PageSample]:
    def answer(row: Mapping[str, Any], side: str) -> PageAnswer:
        return PageAnswer(row[side], (("gold", row[f"gold_{side}"]), ("proxy", row[f"proxy_{side}"])))

    return [PageSample(row["prompt"], answer(row, "before"), answer(row, "after")) for row in rows]
