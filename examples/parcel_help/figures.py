"""The numbers of report.json, computed from the files that the stages of the quickstart wrote.

Knows gold and labels, but no page. Headline figures are for held-out prompts, which neither fine-tuning nor
the reward model nor PPO has seen.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from examples.parcel_help import gold, labelers, measures
from examples.parcel_help.files import Files
from examples.parcel_help.measures import Comparison
from fairlead.config import RunConfig
from fairlead.data.records import is_heldout
from fairlead.judgments import Judgment, agreement
from fairlead.judgments.calibration import BINS, accuracy, expected_calibration_error
from fairlead.judgments.shares import wilson_interval
from fairlead.local.serving import GeneratedAnswer
from fairlead.report import run_record
from fairlead.report.charts import Bin
from fairlead.report.run_record import QUEUE_FIGURES, RunRecord
from fairlead.rounds.configuration import round_config
from fairlead.rounds.files import read_answers, read_rows
from fairlead.rounds.labelers import pairs

Scores = Mapping[tuple[str, str], float]
"""Score of the reward model by (prompt, answer)."""


@dataclass(frozen=True, slots=True)
class Round:
    """The results of one round."""

    record: RunRecord
    """The files that every run has, of this round."""
    train: tuple[Comparison, ...]
    """Comparisons that the reward model was trained on, of this round and all before."""
    heldout: tuple[Comparison, ...]
    """Comparisons of held-out prompts, of this round and all before."""
    fresh: tuple[Comparison, ...]
    """Held-out comparisons of this round only: answers of the policy that its PPO started from."""
    sft: dict[str, list[GeneratedAnswer]]
    """Answers by prompt of the SFT policy."""
    before: dict[str, list[GeneratedAnswer]]
    """Answers by prompt of the policy that this round's PPO started from."""
    after: dict[str, list[GeneratedAnswer]]
    """Answers by prompt of the tuned policy."""
    scores: Scores
    """Scores of this round's reward model, for all these answers and the next round's comparisons."""
    agreement: float
    """Share of pairs that two labelers order alike."""

    def margins(self, comparisons: Sequence[Comparison]) -> list[float]:
        """Return the reward model's margins: score of the chosen answer minus that of the rejected one."""
        return [self.scores[c.prompt, c.chosen] - self.scores[c.prompt, c.rejected] for c in comparisons]


def read_round(config: RunConfig, files: Files, number: int) -> Round:
    """Read the results of a round; `config` is the configuration of the quickstart."""
    by_round = [
        [_comparison(row["prompt"], *pair) for row in read_rows(path) for pair in pairs(row)]
        for path in (files.of_round(known, "rankings") for known in range(number + 1))
    ]
    compared = list(itertools.chain(*by_round))
    sft = _by_prompt(read_answers(files.answers_sft))
    return Round(
        record=run_record.read(round_config(config, number).folder),
        train=tuple(c for c in compared if not is_heldout(config, c.prompt)),
        heldout=tuple(c for c in compared if is_heldout(config, c.prompt)),
        fresh=tuple(c for c in by_round[-1] if is_heldout(config, c.prompt)),
        sft=sft,
        before=_by_prompt(read_answers(files.of_round(number - 1, "answers"))) if number else sft,
        after=_by_prompt(read_answers(files.of_round(number, "answers"))),
        scores={
            (row["prompt"], row["text"]): float(row["score"])
            for row in read_rows(files.of_round(number, "scores"))
        },
        agreement=_agreement(read_answers(files.of_round(number, "tasks")), seed=config.seed),
    )


def report_json(config: RunConfig, rounds: Sequence[Round], seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return the content of report.json, except for the time it takes to write it."""
    queues = [found.record.queue for found in rounds]
    return {
        "seconds": {"total": sum(seconds.values()), **seconds},
        "seed": config.seed,
        "sft": {"heldout_loss": rounds[0].record.sft.get("heldout_loss")},
        "labelers": {"agreement": rounds[0].agreement},
        "rounds": [
            {
                "reward_model": reward_model_figures(config, found, rounds[number - 1] if number else None),
                "ppo": ppo_figures(config, found),
            }
            for number, found in enumerate(rounds)
        ],
        "queue": {
            name: sum(queue[name] for queue in queues) if all(name in queue for queue in queues) else None
            for name in QUEUE_FIGURES
        },
        "samples": samples(config, rounds[-1]),
    }


def reward_model_figures(config: RunConfig, found: Round, previous: Round | None) -> dict[str, Any]:
    """Return how well the reward model orders held-out comparisons, and baselines that any model should beat.

    `stale_accuracy_gold` is the accuracy of the previous round's model on this round's new comparisons, which
    are answers of a policy tuned for it; None in the first round. `fresh_accuracy_gold` is that of this
    round's model on the same comparisons. `tuned_accuracy_gold` is that of this round's model on answers of
    the policy that was then tuned for it.
    """
    margins = found.margins(found.heldout)
    accuracies = measures.accuracies(margins, found.heldout)
    words = measures.bag_of_words_margins(found.train, found.heldout)
    tuned = _gold_pairs(config, found.after)
    return {
        **accuracies,
        "accuracy_labels_interval": wilson_interval(accuracies["accuracy_labels"], len(margins)),
        "ece": expected_calibration_error(margins),
        "ece_calibrated": found.record.reward_model.get("ece_calibrated"),
        "temperature": found.record.reward_model.get("temperature"),
        "comparisons": len(found.train),
        "heldout_comparisons": len(found.heldout),
        "fresh_comparisons": len(found.fresh),
        "fresh_accuracy_gold": _accuracy_gold(found, found.fresh),
        "stale_accuracy_gold": _accuracy_gold(previous, found.fresh) if previous else None,
        "tuned_accuracy_gold": _accuracy_gold(found, tuned),
        "baselines": {
            "longer_wins": measures.accuracies(measures.longer_margins(found.heldout), found.heldout),
            "bag_of_words": measures.accuracies(words, found.heldout),
        },
    }


def ppo_figures(config: RunConfig, found: Round) -> dict[str, Any]:
    """Return what PPO changed: in gold, in the reward model's score, and how far the policy moved."""
    sides = {
        heldout: [prompt for prompt in found.after if is_heldout(config, prompt) is heldout]
        for heldout in (True, False)
    }
    # If there are too few prompts to hold any out, use the training prompts.
    first = sides[True] or sides[False]
    sft, after = gold_rewards(found.sft, first), gold_rewards(found.after, first)
    return {
        **_gold_figures(found, first),
        "win_rate_interval": measures.win_rate_interval(sft, after, seed=config.seed),
        "proxy_before": fmean(proxies(found, found.before, first)),
        "proxy_after": fmean(proxies(found, found.after, first)),
        "kl": found.record.ppo.get("kl"),
        "episodes": found.record.ppo.get("episodes"),
        "guards": list(found.record.ppo.get("guards", ())),
        "heldout_prompts": len(sides[True]),
        "training_prompts": _gold_figures(found, sides[False]) if sides[False] else None,
    }


def gold_rewards(
    answers: Mapping[str, Sequence[GeneratedAnswer]], prompts: Iterable[str]
) -> dict[str, list[float]]:
    """Return the gold rewards of the answers to some prompts."""
    return {
        prompt: [gold.reward(prompt, a.text, ended=a.ended) for a in answers[prompt]] for prompt in prompts
    }


def proxies(
    found: Round, answers: Mapping[str, Sequence[GeneratedAnswer]], prompts: Iterable[str]
) -> list[float]:
    """Return the reward model's scores of the answers to some prompts."""
    return [found.scores[prompt, a.text] for prompt in prompts for a in answers[prompt]]


def calibration_bins(margins: Sequence[float]) -> list[Bin]:
    """Return comparisons in equal bins of the reward model's confidence σ(|margin|), without empty bins."""
    sure = [(1 / (1 + math.exp(-abs(margin))), margin) for margin in margins]
    found: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for confidence, margin in sure:
        found[min(BINS - 1, int((confidence - 0.5) * 2 * BINS))].append((confidence, margin))
    return [
        Bin(
            confidence=fmean(confidence for confidence, _ in members),
            accuracy=accuracy([margin for _, margin in members]),
            count=len(members),
        )
        for members in found
        if members
    ]


def samples(config: RunConfig, found: Round) -> list[dict[str, Any]]:
    """Return the first answers of both policies to prompts drawn at random, held-out prompts first."""
    rng = random.Random(f"{config.seed} samples")
    prompts = rng.sample(list(found.after), k=len(found.after))
    prompts.sort(key=lambda prompt: not is_heldout(config, prompt))
    return [
        {
            "prompt": prompt,
            "heldout": is_heldout(config, prompt),
            **{
                f"{name}{side}": value
                for side, answer in (
                    ("before", found.sft[prompt][0]),
                    ("after", found.after[prompt][0]),
                )
                for name, value in (
                    ("", answer.text),
                    ("gold_", gold.reward(prompt, answer.text, ended=answer.ended)),
                    ("proxy_", found.scores[prompt, answer.text]),
                )
            },
        }
        for prompt in prompts[: config.evaluation.num_report_samples]
    ]


def gold_by_update(record: RunRecord) -> tuple[list[float], list[float]]:
    """Return the updates and, for each, the mean gold reward of the answers that were kept."""
    found: dict[int, list[float]] = {}
    for row in record.rollout_samples:
        worth = gold.reward(row["prompt"], row["text"], ended=row["ended"])
        found.setdefault(int(row["update"]), []).append(worth)
    return [float(update) for update in sorted(found)], [fmean(found[update]) for update in sorted(found)]


def _gold_figures(found: Round, prompts: Sequence[str]) -> dict[str, float]:
    sft, before, after = (gold_rewards(side, prompts) for side in (found.sft, found.before, found.after))
    return {
        "gold_before": fmean(itertools.chain(*before.values())),
        "gold_after": fmean(itertools.chain(*after.values())),
        "win_rate_vs_sft": measures.win_rate(sft, after),
    }


def _accuracy_gold(found: Round, comparisons: Sequence[Comparison]) -> float:
    return measures.accuracies(found.margins(comparisons), comparisons)["accuracy_gold"]


def _gold_pairs(config: RunConfig, answers: Mapping[str, Sequence[GeneratedAnswer]]) -> list[Comparison]:
    """Every two different answers to a held-out prompt, which all ended, as comparisons without a label."""
    found = []
    for prompt, group in answers.items():
        if is_heldout(config, prompt):
            texts = dict.fromkeys(answer.text for answer in group if answer.ended)
            found += [_comparison(prompt, one, other) for one, other in itertools.combinations(texts, 2)]
    return found


def _comparison(prompt: str, chosen: str, rejected: str) -> Comparison:
    margin = gold.reward(prompt, chosen, ended=True) - gold.reward(prompt, rejected, ended=True)
    return Comparison(prompt, chosen, rejected, gold_margin=margin)


def _by_prompt(groups: Iterable[Sequence[GeneratedAnswer]]) -> dict[str, list[GeneratedAnswer]]:
    return {str(group[0].prompt): list(group) for group in groups}


def _agreement(tasks: Sequence[Sequence[GeneratedAnswer]], *, seed: int) -> float:
    rng = random.Random(f"{seed} agreement")
    judgments = []
    for number, task in enumerate(tasks):
        worth = [gold.reward(str(a.prompt), a.text, ended=a.ended) for a in task]
        for labeler in ("first", "second"):
            ranks = {str(index): rank for rank, index in enumerate(labelers.rank(worth, rng=rng))}
            judgments.append(Judgment(str(number), labeler, ranks))
    return agreement(judgments, seed=seed).rate or 0.0
