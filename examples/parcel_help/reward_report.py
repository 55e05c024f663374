"""What the quickstart's page says of the reward model: how right it is, and how it goes stale.

Sections of the page that `report` puts together; the numbers come from `figures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from examples.parcel_help import figures
from examples.parcel_help.figures import Round
from trainer import charts
from trainer.page import PageSection, Picture, Table


def round_by_round(numbers: Mapping[str, Any]) -> PageSection:
    """Why the reward model is refreshed: how right it is about the answers of a policy that it has tuned."""
    columns = ("round", "gold", "reward model's score", "win rate", "KL", "right on labels", "right by gold")
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
    courses = {
        "first, on SFT's answers": first["accuracy_gold"],
        "first, on the tuned policy's answers": second["stale_accuracy_gold"],
        "refreshed, on the same": second["fresh_accuracy_gold"],
        "refreshed, on answers tuned to please it": second["tuned_accuracy_gold"],
    }
    picture = Picture(
        title="The reward model goes stale",
        source=charts.bars(courses, x_label="share ordered rightly, by gold", limit=1, mark=0.5, wide=True),
        caption="It learned from answers of the policy as it was. PPO looks for answers that please it, "
        "and there it knows less; ranking those answers and learning from them mends it. That is why the "
        "loop is a loop.",
        wide=True,
    )
    return PageSection(
        title="Round by round",
        text="Every round ranks the policy's own answers, retrains the reward model on all rankings so far, "
        "and lets PPO go on from where it stood, with the KL penalty to SFT.",
        pictures=(picture,),
        tables=(Table(columns=columns, rows=rows),),
    )


def reward_model(found: Round, model: Mapping[str, Any]) -> PageSection:
    """How right it is about held-out comparisons, beside judges that know less."""
    names = {"longer_wins": "the longer answer wins", "bag_of_words": "bag of words"}
    rows = [("reward model", model)] + [(names[key], value) for key, value in model["baselines"].items()]
    table = Table(
        columns=("right on held-out comparisons", "labels", "gold"),
        rows=tuple(
            (name, f"{row['accuracy_labels']:.1%}", f"{row['accuracy_gold']:.1%}") for name, row in rows
        ),
    )
    pictures = (
        Picture(
            title="Does it know when it knows?",
            source=charts.calibration(figures.calibration_bins(found.margins(found.heldout))),
            caption="Each dot is a group of comparisons, larger for more. On the dashed line the reward "
            f"model is right as often as it is sure. Mean gap (ECE): {model['ece']:.3f}{_calibrated(model)}.",
        ),
        Picture(
            title="Scores before and after",
            source=charts.histograms(
                {
                    "before": figures.proxies(found, found.before, found.before),
                    "after": figures.proxies(found, found.after, found.after),
                },
                x_label="reward model's score of an answer",
            ),
            caption="What the reward model thinks of the answers before and after PPO followed it.",
        ),
    )
    text = (
        f"Trained on {model['comparisons']} comparisons, tested on {model['heldout_comparisons']} of prompts "
        "it has never seen. Labels are noisy, so no model can foresee them all; gold is what the labelers "
        "meant. A bag of words knows which words please, but not which remedy belongs to which problem."
    )
    return PageSection(title="The reward model", text=text, pictures=pictures, tables=(table,))


def _calibrated(model: Mapping[str, Any]) -> str:
    """What a temperature makes of it, where there is one."""
    if model["temperature"] is None or model["ece_calibrated"] is None:
        return ""
    return f"; with scores divided by the fitted {model['temperature']:.2f}: {model['ece_calibrated']:.3f}"
