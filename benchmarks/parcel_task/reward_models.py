"""Reward models of parcel help in this process: labels of simulated people, training, scores.

Training is that of `fairlead reward-model`, with the settings of configs/quickstart.toml.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import quickstart
from benchmarks.parcel_task.answers import Answer, Answers
from examples.parcel_help import gold, labelers
from fairlead.rounds.files import write_rows
from trainer.ppo.heldout_reward import HeldoutReward
from trainer.reward_model.train import train as train_reward_model

PEOPLE_UNIT = labelers.NOISE
"""A score times this is in units of gold, if the model is calibrated on people's labels: they prefer an
answer that is better by Δ with probability σ(Δ ÷ NOISE)."""
CUT_OFF_PENALTY = 2.0
"""Subtracted from the score of an answer without an end, as in PPO of the quickstart."""
_NOTHING_HELD_OUT = "1e-9"


def ranking(prompt: str, answers: Sequence[Answer], *, rng: random.Random) -> dict[str, Any]:
    """Return a line of rankings: one simulated person orders the answers to a prompt."""
    worths = [gold.reward(prompt, answer.text, ended=answer.ended) for answer in answers]
    places = {index: place for place, index in enumerate(labelers.rank(worths, rng=rng), start=1)}
    responses = [{"text": answer.text, "rank": places[index]} for index, answer in enumerate(answers)]
    return {"prompt": prompt, "responses": responses}


def tasks(answers: Answers, count: int, *, size: int, rng: random.Random) -> list[tuple[str, list[Answer]]]:
    """Return prompts drawn at random, each with `size` answers of different texts."""
    prompts = list(answers)
    found = []
    for _ in range(count):
        prompt = rng.choice(prompts)
        different = list({answer.text: answer for answer in answers[prompt]}.values())
        found.append((prompt, rng.sample(different, k=size)))
    return found


def trained(
    rows: Iterable[Mapping[str, Any]],
    start: Path,
    folder: Path,
    *,
    seed: int,
    members: int = 1,
    demonstrations: Path | None = None,
) -> Path:
    """Return the folder of a reward model or an ensemble; it is trained if the folder does not exist.

    Args:
        rows: lines of rankings or pairs.
        start: the policy that it starts from.
        folder: of its own, whose name must say what it depends on.
        seed: of its head and the order of the data.
        members: of an ensemble.
        demonstrations: scored 0 on average, so that the members of an ensemble compare; None: scores keep
            the offset that they were trained to.
    """
    overrides = {
        "name": "run",
        "runs": folder.absolute(),
        "reward_model.path": start,
        "reward_model.ensemble_size": members,
        "data.demonstrations": demonstrations or "",
        "data.preferences": folder / "labels.jsonl",
        "data.heldout_fraction": _NOTHING_HELD_OUT,
        "seed": seed,
    }
    config = quickstart.config({name: str(value) for name, value in overrides.items()})
    if not config.folder.result("reward_model").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_rows(folder / "labels.jsonl", rows)
        train_reward_model(config)
    return config.folder.reward_model


def scores(model: Path, answers: Answers) -> dict[str, list[float]]:
    """Return the score of every answer, by prompt; a text is read once, and a missing end costs.

    Args:
        model: a reward model or an ensemble, whose mean is taken.
        answers: by prompt.
    """
    config = quickstart.config({"evaluation.reward_model": str(model), "ppo.max_micro_batch_tokens": "16384"})
    asked = list({(prompt, answer.text): None for prompt, own in answers.items() for answer in own})
    known = dict(zip(asked, HeldoutReward(config).scores(asked), strict=True))
    return {
        prompt: [known[prompt, each.text] - (0.0 if each.ended else CUT_OFF_PENALTY) for each in own]
        for prompt, own in answers.items()
    }
