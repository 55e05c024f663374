"""Sections of the quickstart's report about the reward model: its accuracy, and how it becomes stale.

`report` puts them on the page. The numbers come from `figures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from examples.parcel_help import figures
from examples.parcel_help.figures import Round
from fairlead.report import charts
from fairlead.report.page import PageSection, Picture, Table


def round_by_round(numbers: Mapping[str, Any]) -> PageSection:
    """Return the section that compares the rounds and shows why the reward model is refreshed."""
    columns = (
        "round",
        "gold",
        "reward model's score",
        "win rate",
        "KL",
        "accuracy on labels",
        "accuracy by gold",
    )
    rows = tuple(
        (
            str(number),
            f"{ppo['gold_before']:+.2f} → {ppo['gold_after']:+.2f}",
            f"{ppo['proxy_before']:+.2f} → {ppo['proxy_after']:+.2f}",
            f"{ppo['win_rate_vs_sft']:.0%}",
            f"{ppo['kl']:.1f}" if ppo["kl"] is not None else "–",
            f"{model['accuracy_labels']:.0%}",
            f"{model['accuracy_gold']:.0%}",
        )
        for number, (model, ppo) in enumerate(
            ((one["reward_model"], one["ppo"]) for one in numbers["rounds"]), start=1
        )
    )
    first, second = (numbers["rounds"][number]["reward_model"] for number in (0, 1))
    accuracies = {
        "first, on answers of SFT": first["accuracy_gold"],
        "first, on answers of the tuned policy": second["stale_accuracy_gold"],
        "refreshed, on the same answers": second["fresh_accuracy_gold"],
        "refreshed, on answers tuned for it": second["tuned_accuracy_gold"],
    }
    picture = Picture(
        title="The reward model becomes stale",
        chart=charts.bars(
            accuracies, x_label="share of pairs ordered correctly, by gold", limit=1, mark=0.5, wide=True
        ),
        caption="The first reward model learned from answers of the SFT policy. PPO moves the policy to "
        "other answers, on which this reward model is less accurate. Training on rankings of those answers "
        "makes it accurate again, which is why the loop repeats.",
        wide=True,
    )
    return PageSection(
        title="Round by round",
        text="Every round ranks answers of the current policy, retrains the reward model on all rankings so "
        "far, and continues PPO with the KL penalty to SFT.",
        pictures=(picture,),
        tables=(Table(columns=columns, rows=rows),),
    )


def reward_model(found: Round, model: Mapping[str, Any]) -> PageSection:
    """Return the section on the accuracy of the reward model, next to simple baselines."""
    names = {"longer_wins": "the longer answer wins", "bag_of_words": "bag of words"}
    rows = [("reward model", model)] + [(names[key], value) for key, value in model["baselines"].items()]
    table = Table(
        columns=("accuracy on held-out comparisons", "labels", "gold"),
        rows=tuple(
            (name, f"{row['accuracy_labels']:.1%}", f"{row['accuracy_gold']:.1%}") for name, row in rows
        ),
    )
    pictures = (
        Picture(
            title="Calibration",
            chart=charts.calibration(figures.calibration_bins(found.margins(found.heldout))),
            caption="Each dot is a group of comparisons; its area grows with their number. On the dashed "
            "line the reward model's confidence equals its accuracy. Mean gap (ECE): "
            f"{model['ece']:.3f}{_calibrated(model)}.",
        ),
        Picture(
            title="Scores before and after",
            chart=charts.histograms(
                {
                    "before": figures.proxies(found, found.before, found.before),
                    "after": figures.proxies(found, found.after, found.after),
                },
                x_label="reward model's score of an answer",
            ),
            caption="Scores of the answers before and after this round's PPO.",
        ),
    )
    text = (
        f"Trained on {model['comparisons']} comparisons, tested on {model['heldout_comparisons']} of unseen "
        "prompts. Labels are noisy, so no model can predict them all; gold is what they are drawn from. "
        "A bag of words knows which words are preferred, but not which remedy belongs to which problem."
    )
    return PageSection(title="The reward model", text=text, pictures=pictures, tables=(table,))


def _calibrated(model: Mapping[str, Any]) -> str:
    """Describe the gap after calibration, if a temperature was fitted."""
    if model["temperature"] is None or model["ece_calibrated"] is None:
        return ""
    return f"; with scores divided by the fitted {model['temperature']:.2f}: {model['ece_calibrated']:.3f}"
