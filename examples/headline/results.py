"""The figures of the headline, from the answers of every seed: win rates by three judges, losses, worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from examples.headline import answers, judging
from examples.headline.answers import PERFECT, STAGES, Answers, Model, Stage
from examples.headline.answers import read as read_answers
from examples.headline.judging import GOLD, LABELERS, OTHER, Judge
from examples.headline.seed import Seed
from examples.parcel_help import gold
from examples.parcel_help.corpus import questions
from fairlead.config import RunFolder
from fairlead.errors import ConfigError

_ASKED = {question.text: question for question in questions()}


def of_seed(one: Seed, other: Seed | None) -> dict[str, Any]:
    """Return the figures of a seed.

    Args:
        one: the seed.
        other: another seed, whose last reward model is a judge; None leaves that judge out.

    Raises:
        FairleadError: the service of the reward model fails.
    """
    every = read_answers(one.answers)
    limits = answers.imitations(
        one.known_questions, one.heldout_questions, num_answers=one.plan.num_answers, seed=one.seed
    )
    every |= {found.model: found for found in limits}
    judges = _judges(one, other, list(every.values()))
    largest = one.plan.sizes[-1].name
    tuned: Model = ("tuned", one.plan.sizes[0].name)
    return {
        "seed": one.seed,
        "heldout_questions": len(every[tuned].texts),
        "answers": one.plan.num_answers,
        "models": [_model(one, found) for found in every.values()],
        "tuned_against": [
            _row(model, name, judge, every[tuned], every[model], one.seed)
            for model in every
            if model != tuned
            for name, judge in judges.items()
        ],
        "against_largest_fine_tuned": [
            _row(model, name, judge, every[model], every["fine-tuned", largest], one.seed)
            for model in every
            if model != ("fine-tuned", largest)
            for name, judge in judges.items()
        ],
        **one.times(),
    }


def together(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of all seeds: of the models and of each comparison, the means over seeds."""
    return {
        "models": _means(found, "models"),
        "tuned_against": _means(found, "tuned_against"),
        "against_largest_fine_tuned": _means(found, "against_largest_fine_tuned"),
    }


def rows_of(
    found: Mapping[str, Any], key: str, *, stage: Stage, size: str, judge: str = ""
) -> list[dict[str, Any]]:
    """Return the rows of some figures about one model, of one judge if it is given."""
    return [
        row
        for row in found[key]
        if (row["stage"], row["size"]) == (stage, size) and (not judge or row["judge"] == judge)
    ]


def _judges(one: Seed, other: Seed | None, every: Sequence[Answers]) -> dict[str, Judge]:
    judges: dict[str, Judge] = {
        GOLD: judging.ByScore(GOLD, judging.gold_scores(every)),
        LABELERS: judging.ByLabelers(seed=one.seed),
    }
    if other is not None:
        model = other.last_round.folder.reward_model
        kept = one.folder / f"scores-by-seed-{other.seed}.jsonl"
        scores = judging.reward_scores(one.tuned, model, every, kept)
        judges[OTHER] = judging.ByScore(str(model), scores, tie_margin=judging.TIE_MARGIN)
    return judges


def _row(model: Model, name: str, judge: Judge, a: Answers, b: Answers, seed: int) -> dict[str, Any]:
    stage, size = model
    return {"stage": stage, "size": size, "judge": name, **judging.compare(judge, a, b, seed=seed).as_json()}


def _model(one: Seed, found: Answers) -> dict[str, Any]:
    """Return what a model's answers are worth and made of, and its loss on held-out text.

    The loss is that of its training stage: on pages, or on the answers of demonstrations.
    """
    stage, name = found.model
    texts = [(question, text) for question, own in found.texts.items() for text in own]
    parts = [(question, gold.parse(text)) for question, text in texts]
    return {
        "stage": stage,
        "size": name,
        **_trained(one, found.model),
        "gold": fmean(gold.reward(question, text, ended=True) for question, text in texts),
        "right_remedy": fmean(
            any(part.kind == "remedy" and part.about == _ASKED[question].problem for part in own)
            for question, own in parts
        ),
        "rude": fmean(any(part.kind == "rude" for part in own) for _, own in parts),
        "other_text": fmean(any(part.kind == "ungrammatical" for part in own) for _, own in parts),
        "words": fmean(len(text.split()) for _, text in texts),
        "ended": found.ended,
    }


def _trained(one: Seed, model: Model) -> dict[str, Any]:
    """Return the number of parameters, and the held-out loss if the last stage has one."""
    stage, name = model
    if name == PERFECT:
        return {}
    size = next(size for size in one.plan.sizes if size.name == name)
    trained = one.fine_tuned(size) if stage in ("fine-tuned", "tuned") else one.pretrained(size)
    result = _result(trained.folder)
    return {"parameters": result["parameters"]} if stage == "tuned" else result


def _result(folder: RunFolder) -> dict[str, Any]:
    file = folder.result("sft")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return {"parameters": int(result["parameters"]), "heldout_loss": float(result["heldout_loss"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "--out",
            got=f"{file}, which is missing or damaged ({error})",
            allowed="the file as the command wrote it, or --out FOLDER with another folder",
        ) from error


def _means(found: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return rows with the means over seeds of their numbers, and the range of win rates."""
    means = []
    for first in found[0][key]:
        names = ("stage", "size", "judge")
        own = {name: first[name] for name in names if name in first}
        rows = [row for one in found for row in one[key] if all(row[name] == own[name] for name in own)]
        numbers = {
            name: fmean(row[name] for row in rows)
            for name, value in first.items()
            if name not in own and isinstance(value, int | float)
        }
        means.append({**own, **numbers})
        if "win_rate" in first:
            means[-1]["lowest"] = min(row["interval"][0] for row in rows)
            means[-1]["by_seed"] = [row["win_rate"] for row in rows]
    return means


def order(rows: Sequence[Mapping[str, Any]], sizes: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return rows by stage, then by size."""
    names = [*sizes, PERFECT]
    return sorted(rows, key=lambda row: (STAGES.index(row["stage"]), names.index(row["size"])))
